"""Sparse operators as ONNX's own: any runtime, the same numbers, the same names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import st3fx
from st3fx.passes.onnx.plain_operators import PlainOperators, plain_proto
from st3fx.runtime.calibration import Calibration
from tests.passes.onnx import graphs
from tests.passes.onnx.graphs import graph, lowered, weight

BODY = """
    a = Conv<group=2, pads=[1,1,1,1]>(x, u, b)
    r = Relu(a)
    d = Conv<group=8, pads=[1,1,1,1]>(r, k)
    t = Clip(d, low, high)
    c = Conv(t, v)
    s = Add(c, r)
    i = Sigmoid(s)
    j = Mul(s, i)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(j)
    q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(j)
    l = Concat<axis=1>(p, q)
    e = GlobalAveragePool(l)
    z = Mul(l, e)
    h = Conv(z, w)
    n = HardSwish(h)
    o = ReduceMean<keepdims=0>(n, axes)
    f = Gemm<transB=1>(o, g, m)
    y = Relu(f)
"""
CONSTANTS = {
    "u": weight(8, 3, 3, 3), "b": weight(8, density=1), "k": weight(8, 1, 3, 3, density=1),
    "v": weight(8, 8, 1, 1, seed=1), "w": weight(8, 16, 1, 1, seed=2), "g": weight(5, 8),
    "m": weight(5, density=1), "axes": np.array([2, 3]),
    "low": np.array(-1, np.float32), "high": np.array(2, np.float32),
}  # fmt: skip


def test_every_operator_comes_back() -> None:
    plain = graph("float[N,6,16,16] x => float[N,5] y", BODY, **CONSTANTS)
    sparse, report = lowered(plain)
    assert set(report.operators) == {
        "SparseConv", "DepthwiseConv", "ImageMaxPool", "ImageAveragePool", "ImageConcat",
        "ImageGlobalAveragePool", "ChannelScale", "SparseLinear",
    }  # fmt: skip
    PlainOperators()(sparse)
    assert {node.domain for node in sparse.graph} == {""}
    assert "st3fx" not in sparse.opset_imports
    onnx.checker.check_model(ir.to_proto(sparse), full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 6, 16, 16), dtype=np.float32)
    graphs.assert_same(plain, sparse, x)
    for name in ("u", "v", "w", "g", "k"):
        value = sparse.graph.initializers[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), CONSTANTS[name])


@pytest.mark.parametrize(
    "middle",
    ["BatchNormalization(r, gamma, beta, mean, variance)", "Mul(r, scale)", "Mul(scale, r)",
     "Conv<group=8>(r, k, b)", "Conv<group=8>(r, k)"],
)  # fmt: skip
def test_a_batch_norm_and_a_scale_are_counted_as_what_they_were(
    middle: str, tmp_path: Path
) -> None:
    """Each of them runs by the kernel of a depthwise convolution, which stays one."""
    body = f"""
        a = Conv<pads=[1,1,1,1]>(x, u)
        r = Relu(a)
        n = {middle}
        y = Conv(n, v)
    """
    constants = {
        "u": weight(8, 6, 3, 3), "gamma": weight(8, density=1), "beta": weight(8, density=1),
        "mean": weight(8, density=1), "variance": np.arange(1, 9, dtype=np.float32),
        "scale": weight(8, 1, 1), "k": weight(8, 1, 1, 1), "b": weight(8), "v": weight(8, 8, 1, 1),
    }  # fmt: skip
    plain = graph("float[1,6,16,16] x => float[1,8,16,16] y", body, **constants)
    sparse, report = lowered(plain)
    assert report.operators == {"SparseConv": 2, "DepthwiseConv": 1}
    counts = []
    for name, model in (("plain", plain), ("sparse", sparse)):
        onnx.save(ir.to_proto(model), tmp_path / f"{name}.onnx")
        counts.append(st3fx.count_flops(tmp_path / f"{name}.onnx"))
    before, after = counts
    rows = [[(row.name, row.op, row.sparse_macs) for row in c.by_layer.values()] for c in counts]
    assert rows[0] == rows[1]
    assert len(rows[0]) == (3 if "Conv" in middle else 2)
    assert (after.by_op, after.parameters) == (before.by_op, before.parameters)
    PlainOperators()(sparse)
    x = np.random.default_rng(0).standard_normal((1, 6, 16, 16), dtype=np.float32)
    graphs.assert_same(plain, sparse, x)


@pytest.mark.parametrize(
    ("signature", "body", "shape"),
    [
        ("float[N,4,12] x => float[N,4,7] y", "a = MatMul(x, w)\ny = Add(a, b)", (12, 7)),
        ("float[N,12,4] x => float[N,7,4] y", "y = MatMul(w, x)", (7, 12)),
    ],
)
def test_products(signature: str, body: str, shape: tuple[int, int]) -> None:
    plain = graph(signature, body, w=weight(*shape), b=weight(7, density=1))
    sparse, _ = lowered(plain)
    PlainOperators()(sparse)
    inner = (4, 12) if shape[0] == 12 else (12, 4)
    x = np.random.default_rng(0).standard_normal((3, *inner), dtype=np.float32)
    graphs.assert_same(plain, sparse, x)


def test_layout_changes_vanish() -> None:
    body = "a = Conv(x, u, b)\nr = Relu(a)\ny = Conv(r, v)"
    signature = "float[N,3,16,16] x => float[N,8,H,W] r, float[N,8,K,L] y"
    plain = graph(signature, body, **{**CONSTANTS, "u": weight(8, 3, 3, 3)})
    costs = dataclasses.replace(graphs.SPARSE_WINS.costs, call=0.0, move=0.0)
    sparse, report = lowered(plain, Calibration(costs))
    assert report.operators["Layout"] > 0
    PlainOperators()(sparse)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    graphs.assert_same(plain, sparse, x)


def test_a_plain_model_is_given_back() -> None:
    proto = ir.to_proto(graph("float[N,12] x => float[N,7] y", "y = Gemm(x, w)", w=weight(12, 7)))
    assert plain_proto(proto) is proto


def test_damaged_operators_are_refused() -> None:
    plain = graph("float[N,12] x => float[N,7] y", "y = Gemm(x, w)", w=weight(12, 7))
    sparse, _ = lowered(plain)
    columns = sparse.graph.initializers["w.columns"]
    assert columns.const_value is not None
    columns.const_value = ir.tensor(columns.const_value.numpy() + np.uint16(99), name="w.columns")
    with pytest.raises(ValueError, match="damaged weights"):
        PlainOperators()(sparse)
    sparse, _ = lowered(plain)
    graphs.node(sparse, "SparseLinear").op_type = "Unheard"
    with pytest.raises(KeyError, match="Unheard"):
        PlainOperators()(sparse)
