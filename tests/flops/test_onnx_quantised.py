"""Quantised, packed and fused operators: the zeros of the weight that really multiplies.

The oracle is ONNX Runtime: rows of ones, one after the other, give the weight as it multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import st3fx
from tests.flops.graphs import Array
from tests.passes.onnx.quant_kernels.agreement import lowered
from tests.passes.onnx.quant_kernels.nets import Net

MICROSOFT = "com.microsoft"
F32 = np.float32


def codes(*shape: int, kind: type = np.int8, zero: int = 0, seed: int = 0) -> Array:
    """Integers of which about half are the zero point."""
    random = np.random.default_rng(seed)
    there = random.random(shape) < 0.5
    return np.where(there, random.integers(1, 4, shape) + zero, zero).astype(kind)


def model_of(
    op: str,
    inputs: Sequence[Any],
    *,
    domain: str = "",
    outputs: int = 1,
    opset: int = 17,
    **about: Any,
) -> onnx.ModelProto:
    """One node: of its inputs arrays are constant, shapes are the graph's, ``None`` is left out.

    A pair is a shape and an element type.
    """
    names, ports, constants = [], [], []
    for index, item in enumerate(inputs):
        name = "" if item is None else f"i{index}"
        names.append(name)
        if isinstance(item, tuple):
            ports.append(helper.make_tensor_value_info(name, item[1], item[0]))
        elif item is not None:
            constants.append(numpy_helper.from_array(np.asarray(item), name))
    results = [f"o{index}" for index in range(outputs)]
    node = helper.make_node(op, names, results, domain=domain, name=op, **about)
    graph = helper.make_graph(
        [node], "one", ports, [helper.make_empty_tensor_value_info("o0")], constants
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def run(model: onnx.ModelProto, x: Array) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    result: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def counted(model: onnx.ModelProto, folder: Path) -> st3fx.FlopsReport:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return st3fx.count_flops(path)


SCALE, ZERO_U8, ZERO_I8 = F32(1), np.uint8(0), np.int8(0)
K, N = 32, 6
U8, I8, FLOAT = TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT
COLUMNS = np.array([0, 1, 2, 3, 0, 1], np.uint8)
"""A zero point for each output."""

BY_COLUMN = (codes(K, N, kind=np.uint8) + COLUMNS).astype(np.uint8)
PACKED = np.random.default_rng(1).choice(np.array([0x88, 0x38, 0x83, 0x12], np.uint8), (N, 2, 8))
PAIRS = np.random.default_rng(2).choice(
    np.array([0x77, 0x07, 0x70, 0x12, 0x88], np.uint8), K * N // 2
)
SCALES = np.array([[1, 2], [0, 1], [1, 1], [1, 1], [2, 0], [1, 1]], F32)
ZEROS = np.array([0x38, 0x81, 0x88, 0x23, 0x88, 0x18], np.uint8)

PRODUCTS: dict[str, tuple[str, str, Sequence[Any], dict[str, Any]]] = {
    "MatMulInteger": ("MatMulInteger", "", [U8, codes(K, N, zero=3), None, np.int8(3)], {}),
    "MatMulInteger by column": ("MatMulInteger", "", [U8, BY_COLUMN, None, COLUMNS], {}),
    "QLinearMatMul": ("QLinearMatMul", "", [U8, SCALE, ZERO_U8, codes(K, N, zero=2), SCALE,
                      np.int8(2), SCALE, ZERO_U8], {}),
    "QGemm": ("QGemm", MICROSOFT, [U8, SCALE, ZERO_U8, codes(K, N, zero=1), SCALE, np.int8(1), None,
              SCALE, ZERO_U8], {}),
    "QGemm transposed": ("QGemm", MICROSOFT, [U8, SCALE, ZERO_U8, BY_COLUMN.T.copy(),
                         np.ones(N, F32), COLUMNS, None, SCALE, ZERO_U8], {"transB": 1}),
    "MatMulIntegerToFloat": ("MatMulIntegerToFloat", MICROSOFT, [U8, codes(K, N, zero=-2), SCALE,
                             SCALE, ZERO_U8, np.int8(-2)], {}),
    "DynamicQuantizeMatMul": ("DynamicQuantizeMatMul", MICROSOFT, [FLOAT, codes(K, N), SCALE,
                              ZERO_I8], {}),
    "MatMulNBits": ("MatMulNBits", MICROSOFT, [FLOAT, PACKED, SCALES],
                    {"K": K, "N": N, "bits": 4, "block_size": 16}),
    "MatMulNBits with zero points": ("MatMulNBits", MICROSOFT, [FLOAT, PACKED, SCALES, ZEROS],
                                     {"K": K, "N": N, "bits": 4, "block_size": 16}),
    "MatMulNBits of 8 bits": ("MatMulNBits", MICROSOFT,
                              [FLOAT, codes(N, 2, 16, kind=np.uint8, zero=128), SCALES],
                              {"K": K, "N": N, "bits": 8, "block_size": 16}),
    "MatMulNBits of a K that ends in a block": (
        "MatMulNBits", MICROSOFT, [FLOAT, PACKED, SCALES],
        {"K": K - 5, "N": N, "bits": 4, "block_size": 16}),
    "MatMulBnb4 NF4": ("MatMulBnb4", MICROSOFT, [FLOAT, PAIRS, np.ones(K * N // 16, F32)],
                       {"K": K, "N": N, "block_size": 16, "quant_type": 1}),
    "MatMulBnb4 FP4": ("MatMulBnb4", MICROSOFT, [FLOAT, PAIRS, np.ones(K * N // 16, F32)],
                       {"K": K, "N": N, "block_size": 16, "quant_type": 0}),
    "FusedMatMul": ("FusedMatMul", MICROSOFT, [FLOAT, codes(N, K, kind=F32)], {"transB": 1}),
    "FusedGemm": ("FusedGemm", MICROSOFT, [FLOAT, codes(K, N, kind=F32)], {"activation": "Relu"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_weights_of_a_kind_of_their_own(name: str, tmp_path: Path) -> None:
    op, domain, inputs, about = PRODUCTS[name]
    size = about.get("K", K)
    model = model_of(op, [((size, size), inputs[0]), *inputs[1:]], domain=domain, **about)
    kind = np.uint8 if inputs[0] == U8 else F32
    weight = run(model, np.eye(size, dtype=kind))
    report = counted(model, tmp_path)
    nonzeros = int(np.count_nonzero(weight))
    assert 0 < nonzeros < size * N
    assert (report.dense_macs, report.sparse_macs) == (size * size * N, size * nonzeros)
    assert report.unknown == {}
    (row,) = report.by_layer.values()
    assert (row.parameters, row.nonzeros) == (size * N, nonzeros)
    assert (row.inputs, row.outputs) == (size, N)


@pytest.mark.parametrize("opset", [10, 13, 17, 18, 19, 21])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_dequantised_weights_at_every_opset(opset: int, axis: int | None, tmp_path: Path) -> None:
    if axis is not None and opset < 13:
        axis = None
    shape = () if axis is None else ((5,), (4,))[axis]
    zero = np.arange(5 if axis == 0 else 4, dtype=np.int8) if shape else np.array(2, np.int8)
    spread = zero.reshape(-1, 1) if axis == 0 else zero
    weight = (codes(5, 4) + spread).astype(np.int8)
    about: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **about),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    constants = {"w": weight, "s": np.full(shape, 0.5, F32), "z": zero}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, (3, 5))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    report = counted(model, tmp_path)
    nonzeros = int(np.count_nonzero(weight != spread))
    assert (report.dense_macs, report.sparse_macs) == (60, 3 * nonzeros)
    assert (report.by_layer["w"].nonzeros, report.by_layer["w"].weight_bytes) == (nonzeros, 20)


def test_weights_that_are_quantised_in_the_file(tmp_path: Path) -> None:
    weight = np.array([[0.0, -0.0, 0.02], [1.0, -1.0, 0.3]], F32)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    constants: dict[str, Array] = {"w": weight, "s": np.array(0.1, F32), "z": np.array(0, np.int8)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, (5, 2))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert counted(model, tmp_path).sparse_macs == 5 * 3  # 0.02 is rounded away


@pytest.mark.parametrize("last", [0, 1])
def test_quantised_convolutions_with_channels_last(last: int, tmp_path: Path) -> None:
    weight = codes(4, 3, 3, 3, zero=1)
    x = ((2, 5, 6, 3), U8) if last else ((2, 3, 5, 6), U8)
    inputs = [x, SCALE, ZERO_U8, weight, SCALE, np.int8(1), SCALE, ZERO_U8]
    model = model_of("QLinearConv", inputs, domain=MICROSOFT, channels_last=last, pads=[1, 1, 1, 1])
    plain = model_of("Conv", [((2, 3, 5, 6), FLOAT), (weight - 1).astype(F32)], pads=[1, 1, 1, 1])
    found, wanted = counted(model, tmp_path), counted(plain, tmp_path)
    assert (found.dense_macs, found.sparse_macs) == (wanted.dense_macs, wanted.sparse_macs)


def test_a_fused_convolution_costs_what_its_parts_do(tmp_path: Path) -> None:
    weight = codes(4, 3, 3, 3, kind=F32)
    shape, out = ((1, 3, 5, 6), FLOAT), ((1, 4, 3, 4), FLOAT)
    fused = model_of("FusedConv", [shape, weight, np.ones(4, F32), out], domain=MICROSOFT,
                     activation="Relu")  # fmt: skip
    report = counted(fused, tmp_path)
    plain = counted(model_of("Conv", [shape, weight, np.ones(4, F32)]), tmp_path)
    assert (report.dense_macs, report.sparse_macs) == (plain.dense_macs, plain.sparse_macs)
    assert {name: op.flops for name, op in report.by_op.items()} == {"add": 96, "relu": 48}


@pytest.mark.parametrize("zero", [np.array([1, 2], np.int8), None])
def test_a_quantised_lstm(zero: Array | None, tmp_path: Path) -> None:
    shift = np.zeros((2, 1, 1), np.int8) if zero is None else zero.reshape(2, 1, 1)
    w, r = codes(2, 8, 20) + shift, codes(2, 5, 20, seed=1) + shift
    scales = np.ones(2, F32)
    given = np.zeros(2, np.int8) if zero is None else zero
    inputs = [((7, 3, 8), FLOAT), w.astype(np.int8), r.astype(np.int8), *[None] * 5, scales, given,
              scales, given]  # fmt: skip
    model = model_of("DynamicQuantizeLSTM", inputs, domain=MICROSOFT, hidden_size=5,
                     direction="bidirectional")  # fmt: skip
    report = counted(model, tmp_path)
    nonzeros = int(np.count_nonzero(w != shift)) + int(np.count_nonzero(r != shift))
    assert report.dense_macs == 21 * (w.size + r.size)
    assert (report.sparse_macs, report.unknown) == (21 * nonzeros, {})
    assert (report.by_layer["i1"].inputs, report.by_layer["i1"].outputs) == (16, 40)


def test_attention_with_its_projection(tmp_path: Path) -> None:
    weight, batch, length = codes(16, 48, zero=2), 2, 7
    products = batch * length * length * 16 * 2
    inputs = [((batch, length, 16), U8), weight, np.zeros(48, F32), SCALE, SCALE, None, ZERO_U8,
              np.int8(2)]  # fmt: skip
    model = model_of("QAttention", inputs, domain=MICROSOFT, num_heads=4)
    report = counted(model, tmp_path)
    nonzeros = int(np.count_nonzero(weight != 2))
    assert report.dense_macs == batch * length * weight.size + products
    assert report.sparse_macs == batch * length * nonzeros + products
    plain = model_of("Attention", [((batch, length, 16), FLOAT), (weight - 2).astype(F32),
                     np.zeros(48, F32)], domain=MICROSOFT, num_heads=4)  # fmt: skip
    assert counted(plain, tmp_path).sparse_macs == report.sparse_macs
    keys = ((batch, 9, 16), FLOAT)
    model = model_of("MultiHeadAttention", [((batch, length, 16), FLOAT), keys, keys],
                     domain=MICROSOFT, num_heads=4)  # fmt: skip
    assert counted(model, tmp_path).dense_macs == batch * length * 9 * 32


def test_operators_without_a_rule_are_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    weight = codes(4, 4, kind=F32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Inverse", ["a"], ["b"], domain=MICROSOFT),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        # Of this one nobody knows the sizes; of its result, who reads on.
        helper.make_node("NoSuchOperator", ["c"], ["d"], domain=MICROSOFT),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("Reshape", ["e", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    constants = {"w": weight, "shape": np.array([4, 4])}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, (4, 4))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    report = counted(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path)
    assert report.dense_macs == 3 * 64
    assert report.sparse_macs == 3 * 4 * int(np.count_nonzero(weight))
    assert report.unknown == {
        "com.microsoft:Inverse": 1, "com.microsoft:NoSuchOperator": 1, "MatMul": 1
    }  # fmt: skip


def test_a_weight_that_nothing_can_compute_is_named_and_not_counted_as_dense(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("NoSuchOperator", ["w"], ["a"], domain=MICROSOFT),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["x", "b"], ["y"]),
    ]
    constants = {"w": codes(4, 4, kind=F32), "shape": np.array([4, 4])}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, (4, 4))],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    report = counted(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path)
    assert report.dense_macs == 0
    assert report.unknown == {"MatMul with a weight that Reshape makes": 1}


def test_a_packing_without_a_definition_is_named(tmp_path: Path) -> None:
    inputs = [((2, 32), FLOAT), np.zeros((8, 1, 12), np.uint8), np.ones(8, F32)]
    about = {"K": 32, "N": 8, "bits": 3, "block_size": 32}
    report = counted(model_of("MatMulNBits", inputs, domain=MICROSOFT, **about), tmp_path)
    assert (report.dense_macs, report.unknown) == (0, {"com.microsoft:MatMulNBits": 1})


def test_a_lowered_file_counts_as_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    """Our quantized operators have the multiplications, zeros, names and shapes of QDQ."""
    net = Net("N", 8, 9, 11)
    inner = net.q(net.op("Relu", net.conv(net.q("x"), 8, 8, 3)), 0.03, 0)
    inner = net.q(net.conv(inner, 8, 8, 3, group=8), 0.03, 110)
    inner = net.q(net.op("Add", net.q(net.conv(inner, 8, 8, 1, group=2), 0.03, 90), inner))
    mean = net.q(net.op("GlobalAveragePool", inner), 0.01, 100)
    flat = net.op("Flatten", mean)
    model = net.model(net.op("Gemm", flat, net.weight(5, 8), net.floats(5), transB=1))
    onnx.save(model, tmp_path / "given.onnx")
    ours, report = lowered(model)
    assert report.ours == 4
    onnx.save(ours, tmp_path / "ours.onnx")
    given, counted = (
        st3fx.count_flops(tmp_path / name).to_dict() for name in ("given.onnx", "ours.onnx")
    )
    same = ("dense_macs", "sparse_macs", "weights", "weight_nonzeros", "weight_sparsity")
    assert {key: counted[key] for key in same} == {key: given[key] for key in same}
    parts = ("name", "shape", "sparse_macs", "dense_macs")
    rows = [
        [[row[part] for part in parts] for row in told["by_layer"]] for told in (given, counted)
    ]
    assert rows[0] == rows[1]
    assert 0 < given["sparse_macs"] < given["dense_macs"]
