"""Sizes become names, equal only where the sizes are; the graph then takes any."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from st3fx.passes.onnx.sparse_kernels.free_sizes import FreeSizes
from st3fx.runtime.operators import example_shapes
from tests.passes.onnx import graphs
from tests.passes.onnx.graphs import graph, lowered, weight

BODY = """
    a = Conv<pads=[1,1,1,1]>(x, u)
    b = Conv<pads=[1,1,1,1], strides=[2,2]>(a, v)
    c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
    d = Conv<pads=[1,1,1,1]>(b, v)
    s = Add(b, d)
    r = Relu(s)
    e = ReduceMean<keepdims=1>(r, axes)
    f = Conv(e, w)
    g = Sigmoid(f)
    z = Mul(g, r)
    m = ReduceMean<keepdims=0>(z, axes)
    n = ReduceMean<keepdims=0>(c, axes)
    y = Add(m, n)
"""


def opened() -> tuple[ir.Model, ir.Model]:
    """The plain graph and the lowered one, both with free sizes."""
    plain = graph(
        "float[N,8,20,24] x => float[N,8] y", BODY, axes=np.array([2, 3]),
        u=weight(8, 8, 3, 3), v=weight(8, 8, 3, 3, seed=1), w=weight(8, 8, 1, 1, seed=2),
    )  # fmt: skip
    sparse, _ = lowered(plain)
    assert FreeSizes().applied_to(plain).changed == ["x"]
    assert FreeSizes().applied_to(sparse).changed == ["x"]
    onnx.checker.check_model(ir.to_proto(sparse), full_check=True)
    return plain, sparse


@pytest.mark.parametrize("size", [(20, 24), (7, 9), (33, 18), (64, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size(size: tuple[int, int], batch: int) -> None:
    plain, sparse = opened()
    x = np.random.default_rng(0).standard_normal((batch, 8, *size), dtype=np.float32)
    graphs.assert_same(plain, sparse, x)


def test_names_are_equal_where_sizes_always_are() -> None:
    plain, sparse = opened()
    shape = {str(v.name): v.shape for node in plain.graph for v in node.outputs}
    assert shape["a"] == plain.graph.inputs[0].shape  # padding 1, kernel 3
    assert shape["b"] == shape["d"] == shape["z"]
    # Equal at 20x24, but not at 7x9.
    assert shape["b"] != shape["c"]
    assert shape["e"] is not None
    assert list(shape["e"])[2:] == [1, 1]
    for node in sparse.graph:
        if node.attributes.get_string("output_layout") == "blocked":
            declared = list(node.outputs[0].shape or ())
            # As many channels as fit into its size: these depend on it.
            assert str(declared[1]).startswith("storage")


def test_the_size_of_the_example_is_noted() -> None:
    _, sparse = opened()
    assert example_shapes(ir.to_proto(sparse)) == ((1, 8, 20, 24),)
    assert example_shapes(ir.to_proto(sparse), 5) == ((5, 8, 20, 24),)


def test_a_graph_without_images_is_left_alone() -> None:
    plain = graph("float[N,12] x => float[N,7] y", "y = Gemm(x, w)", w=weight(12, 7))
    before = ir.to_proto(plain)
    assert FreeSizes().applied_to(plain).changed == []
    assert ir.to_proto(plain) == before
    assert example_shapes(before) == ()


@pytest.mark.parametrize("text", ["", "1x2", "1xq, 3", "1x8x20x24, 1"])
def test_a_damaged_note_is_none(text: str) -> None:
    _, sparse = opened()
    sparse.metadata_props["st3fx.example"] = text
    found = example_shapes(ir.to_proto(sparse))
    assert found == (((1, 2),) if text == "1x2" else ())
