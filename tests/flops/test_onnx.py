"""What an ONNX graph costs: each kind of product, constants that are computed, sizes, bad files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import st3fx
from st3fx.errors import FlopsError
from tests.flops.graphs import Array, graph, saved

F32 = np.float32


def half(*shape: int) -> Array:
    """A weight in which every other scalar is zero."""
    weight = np.ones(shape, F32)
    weight.reshape(-1)[::2] = 0
    return weight


def node(op: str, *inputs: str, out: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [out], name=f"the_{op}", **attributes)


def _count(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, Array] | None = None,
    **options: Any,
) -> st3fx.FlopsReport:
    kind = options.pop("kind", TensorProto.FLOAT)
    opset = options.pop("opset", 20)
    path = saved(graph(nodes, inputs, constants, opset=opset, kind=kind), folder)
    return st3fx.count_flops(path, **options)


PRODUCTS: dict[str, tuple[onnx.NodeProto, list[int], dict[str, Array], int]] = {
    "matmul": (node("MatMul", "x", "w"), [2, 3, 4], {"w": half(4, 6)}, 144),
    "left": (node("MatMul", "w", "x"), [5, 4, 3], {"w": half(6, 4)}, 5 * 6 * 4 * 3),
    "vector": (node("MatMul", "x", "w"), [2, 3, 4], {"w": half(4)}, 24),
    "broadcast": (node("MatMul", "x", "w"), [2, 1, 3, 4], {"w": half(5, 4, 6)}, 2 * 5 * 72),
    "gemm": (node("Gemm", "x", "w"), [3, 4], {"w": half(4, 6)}, 72),
    "gemm_b": (node("Gemm", "x", "w", transB=1), [3, 4], {"w": half(6, 4)}, 72),
    "gemm_a": (node("Gemm", "x", "w", transA=1), [4, 3], {"w": half(4, 6)}, 72),
    "gemm_left": (node("Gemm", "w", "x", transA=1), [4, 3], {"w": half(4, 6)}, 72),
    "einsum": (node("Einsum", "x", "w", equation="b...i,ij->b...j"), [2, 3, 4], {"w": half(4, 6)},
               144),
    "einsum_sum": (node("Einsum", "x", "w", equation="bki,ij"), [2, 3, 4], {"w": half(4, 6)}, 144),
    "lstm": (node("LSTM", "x", "w", "r", hidden_size=2), [7, 3, 4],
             {"w": half(1, 8, 4), "r": half(1, 8, 2)}, 7 * 3 * (32 + 16)),
    "gru": (node("GRU", "x", "w", "r", hidden_size=2, direction="bidirectional"), [7, 3, 4],
            {"w": half(2, 6, 4), "r": half(2, 6, 2)}, 7 * 3 * (48 + 24)),
    "rnn": (node("RNN", "x", "w", "r", hidden_size=2), [7, 3, 4],
            {"w": half(1, 2, 4), "r": half(1, 2, 2)}, 7 * 3 * (8 + 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_a_weight(name: str, tmp_path: Path) -> None:
    item, shape, constants, macs = PRODUCTS[name]
    report = _count(tmp_path, [item], {"x": shape}, constants)
    assert (report.dense_macs, report.sparse_macs, report.unknown) == (macs, macs // 2, {})
    assert list(report.by_layer) == list(constants)
    assert report.weights == report.parameters == sum(w.size for w in constants.values())
    assert report.weight_sparsity == 0.5


def test_channels_of_a_matrix_are_found_however_it_lies(tmp_path: Path) -> None:
    weight = np.ones((4, 6), F32)
    weight[1] = 0
    for item, constant in (
        (node("MatMul", "x", "w"), weight),
        (node("Gemm", "x", "w"), weight),
        (node("Gemm", "x", "w", transB=1), weight.T.copy()),
    ):
        row = _count(tmp_path, [item], {"x": [3, 4]}, {"w": constant}).by_layer["w"]
        assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 6, 1, 0)
    left = node("Gemm", "w", "x", transA=1)
    row = _count(tmp_path, [left], {"x": [4, 3]}, {"w": weight}).by_layer["w"]
    assert (row.inputs, row.outputs, row.dead_inputs, row.dead_outputs) == (4, 6, 1, 0)


def test_products_of_activations(tmp_path: Path) -> None:
    shapes = {"q": [2, 3, 5, 8], "k": [2, 3, 7, 8], "v": [2, 3, 7, 4]}
    attention = node("Attention", "q", "k", "v")
    report = _count(tmp_path, [attention], shapes, opset=23)
    macs = 2 * 3 * 5 * 7 * 12
    assert (report.dense_macs, report.sparse_macs) == (macs, macs)
    flat = {"q": [2, 5, 24], "k": [2, 7, 24], "v": [2, 7, 12]}
    attention = node("Attention", "q", "k", "v", q_num_heads=3, kv_num_heads=3)
    assert _count(tmp_path, [attention], flat, opset=23).dense_macs == macs
    product = node("MatMul", "x", "z")
    report = _count(tmp_path, [product], {"x": [2, 3, 4], "z": [2, 4, 5]})
    assert report.dense_macs == 120
    assert list(report.by_layer) == ["the_MatMul:matmul"]


def test_an_einsum_of_three_goes_from_left_to_right(tmp_path: Path) -> None:
    item = node("Einsum", "x", "y", "z", out="o", equation="ij,jk,kl->il")
    shapes = {"x": [2, 3], "y": [3, 5], "z": [5, 7]}
    assert _count(tmp_path, [item], shapes).dense_macs == 2 * 3 * 5 + 2 * 5 * 7
    # An index that only one operand has is added up first.
    item = node("Einsum", "x", "y", out="o", equation="aij,jk->ik")
    assert _count(tmp_path, [item], {"x": [9, 2, 3], "y": [3, 5]}).dense_macs == 30


def test_constants_behind_other_nodes(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "w", out="a", perm=[1, 0]),
        node("Reshape", "a", "shape", out="b"),
        node("Identity", "b", out="c"),
        node("MatMul", "x", "c"),
    ]
    constants = {"w": half(6, 4), "shape": np.array([4, 6], np.int64)}
    report = _count(tmp_path, nodes, {"x": [3, 4]}, constants)
    assert (report.dense_macs, report.sparse_macs) == (72, 36)
    assert report.by_layer["w"].shape == (6, 4)


def test_quantised_weights_are_zero_at_their_zero_point(tmp_path: Path) -> None:
    weight = np.full((4, 6), 7, np.int8)
    weight[1:3] = 0  # not zero: 0 − 7
    weight[0] = 8
    constants = {"w": weight, "scale": F32(0.5), "zero": np.int8(7)}
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    nodes = [node("DequantizeLinear", "w", "scale", "zero", out="d"), node("MatMul", "x", "d")]
    report = _count(tmp_path, nodes, {"x": [3, 4]}, arrays)
    assert (report.dense_macs, report.sparse_macs) == (72, 3 * 3 * 6)
    row = report.by_layer["w"]
    assert (row.nonzeros, row.weight_bytes) == (18, 24)
    assert (report.weights, report.parameters) == (24, 24 + 1)  # and the scale
    item = node("MatMulInteger", "x", "w", "", "zero")
    report = _count(tmp_path, [item], {"x": [3, 4]}, arrays, kind=TensorProto.INT8)
    assert (report.dense_macs, report.sparse_macs) == (72, 54)
    per_column = {"w": weight, "zero": np.array([7, 7, 7, 8, 8, 8], np.int8)}
    item = node("MatMulInteger", "x", "w", "", "zero")
    report = _count(tmp_path, [item], {"x": [3, 4]}, per_column, kind=TensorProto.INT8)
    assert report.sparse_macs == 3 * int((weight != per_column["zero"]).sum())


def test_quantised_convolution(tmp_path: Path) -> None:
    weight = np.full((2, 3, 2, 2), 5, np.int8)
    weight[0, 0] = 1
    constants = {"w": weight, "zero": np.array([5, 1], np.int8)}
    item = node("ConvInteger", "x", "w", "", "zero")
    report = _count(tmp_path, [item], {"x": [1, 3, 4, 4]}, constants, kind=TensorProto.INT8)
    assert (report.dense_macs, report.sparse_macs) == (24 * 9, (4 + 12) * 9)


def test_sparse_initializers(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.array([1, 2, 3], F32), "w")
    places = numpy_helper.from_array(np.array([0, 5, 23], np.int64), "w_indices")
    model = graph([node("MatMul", "x", "w")], {"x": [3, 4]})
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 6]))
    report = st3fx.count_flops(saved(model, tmp_path))
    assert (report.dense_macs, report.sparse_macs) == (72, 9)
    assert (report.parameters, report.by_layer["w"].nonzeros) == (24, 3)


def test_embeddings(tmp_path: Path) -> None:
    nodes = [node("Gather", "table", "x", out="e"), node("MatMul", "e", "w")]
    constants = {"table": half(10, 4), "w": half(4, 6)}
    report = _count(tmp_path, nodes, {"x": [2, 5]}, constants, kind=TensorProto.INT64)
    assert report.by_layer["table"].op == "embedding"
    assert (report.dense_macs, report.weights, report.parameters) == (240, 24, 64)


def test_shapes_that_are_calculated(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", out="s"),
        node("Gather", "s", "zero", out="n"),
        node("Concat", "n", "rest", out="t", axis=0),
        node("Reshape", "x", "t", out="r"),
        node("MatMul", "r", "w"),
    ]
    constants = {"zero": np.array([0]), "rest": np.array([-1]), "w": half(12, 6)}
    report = _count(tmp_path, nodes, {"x": ["batch", 3, 4]}, constants, batch=5)
    assert (report.dense_macs, report.inputs) == (5 * 72, ((5, 3, 4),))


def test_a_decided_branch_is_taken_in(tmp_path: Path) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", weight], [f"{name}_y"])],
            name,
            [],
            [helper.make_empty_tensor_value_info(f"{name}_y")],
        )
        for name, weight in (("then_branch", "small"), ("else_branch", "large"))
    }
    nodes = [helper.make_node("If", ["flag"], ["y"], **branches), node("MatMul", "y", "w", out="z")]
    constants = {"small": half(4, 2), "large": half(4, 6), "w": half(6, 2)}
    flag = {"flag": np.array(False)}
    report = _count(tmp_path, nodes, {"x": [3, 4]}, {**constants, **flag})
    assert report.dense_macs == 3 * (24 + 12)


def test_operators_without_a_rule_are_named(tmp_path: Path) -> None:
    nodes = [node("DFT", "x", "", out="d"), node("Relu", "x")]
    report = _count(tmp_path, nodes, {"x": [1, 8, 1]})
    assert report.unknown == {"DFT": 1}
    assert report.elementwise_flops == 8


def test_sizes_of_the_inputs(tmp_path: Path) -> None:
    nodes = [node("Conv", "x", "w")]
    path = saved(graph(nodes, {"x": ["n", 3, "h", "w"]}, {"w": half(2, 3, 3, 3)}), tmp_path)
    with pytest.raises(FlopsError, match="input x is n x 3 x h x w: give its sizes by --input"):
        st3fx.count_flops(path)
    expected = 54 * 36
    for shapes in ([(1, 3, 8, 8)], (1, 3, 8, 8), {"x": (1, 3, 8, 8)}, torch.zeros(1, 3, 8, 8)):
        assert st3fx.count_flops(path, shapes).dense_macs == expected
    with pytest.raises(FlopsError, match="input x is n x 3 x h x w in the graph, not 1x4x8x8"):
        st3fx.count_flops(path, [(1, 4, 8, 8)])
    with pytest.raises(FlopsError, match="2 shapes for 1 inputs: the graph has x"):
        st3fx.count_flops(path, [(1, 3, 8, 8), (1,)])
    with pytest.raises(FlopsError, match="no input 'z': the graph has x"):
        st3fx.count_flops(path, {"z": (1, 3, 8, 8)})
    with pytest.raises(FlopsError, match="'big' is no shape"):
        st3fx.count_flops(path, ["big"])


def test_the_batch_is_one_by_default_and_one_for_all(tmp_path: Path) -> None:
    shapes: dict[str, Sequence[int | str]] = {"x": ["n", 4], "z": [4, "n"]}
    path = saved(graph([node("MatMul", "x", "z")], shapes), tmp_path)
    assert st3fx.count_flops(path).dense_macs == 4
    assert st3fx.count_flops(path, batch=3).dense_macs == 36


BAD: dict[str, tuple[bytes, str]] = {
    "text": (b"hello", "is not an ONNX file, or is broken"),
    "empty": (b"", "is not an ONNX file, or has an empty graph"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_onnx(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(FlopsError, match=message):
        st3fx.count_flops(path)
    with pytest.raises(FlopsError, match="no file"):
        st3fx.count_flops(tmp_path / "b.onnx")
    with pytest.raises(FlopsError, match="is a folder"):
        st3fx.count_flops(tmp_path)


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    model = graph([node("MatMul", "x", "w")], {"x": [3, 64]}, {"w": half(64, 64)})
    path = tmp_path / "a.onnx"
    onnx.save(model, path, save_as_external_data=True, location="a.data", size_threshold=0)
    assert st3fx.count_flops(path).sparse_macs == 3 * 64 * 32
    (tmp_path / "a.data").unlink()
    with pytest.raises(FlopsError, match=r"has its weights in a\.data, which is not beside it"):
        st3fx.count_flops(path)


def test_operators_that_are_not_standard(tmp_path: Path) -> None:
    custom = helper.make_node("Mine", ["x"], ["y"], name="odd", domain="my.ops")
    with pytest.raises(FlopsError, match=r"node 'odd' is Mine of the domain my\.ops, which is not"):
        _count(tmp_path, [custom], {"x": [3, 4]})
    with pytest.raises(FlopsError, match=r"node 'the_Mine' \(Mine\): "):
        _count(tmp_path, [node("Mine", "x")], {"x": [3, 4]})


def test_sizes_that_depend_on_values(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", out="n"), node("Cast", "n", out="c", to=1), node("Relu", "c")]
    with pytest.raises(FlopsError, match="the shape of 'c' depends on values"):
        _count(tmp_path, nodes, {"x": [3, 4]})
    with pytest.raises(FlopsError, match=r"node 'the_MatMul' \(MatMul\): .*ncompatible"):
        _count(tmp_path, [node("MatMul", "x", "w")], {"x": [3, 5]}, {"w": half(4, 6)})
    with pytest.raises(FlopsError, match="nothing makes 'z', which the node 'the_Relu'"):
        _count(tmp_path, [node("Relu", "z")], {"x": [3, 5]})


def test_functions_of_the_file_are_put_in_place(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20)]
    function = helper.make_function(
        "mine", "Twice", ["a", "b"], ["c"], [helper.make_node("MatMul", ["a", "b"], ["c"])], opsets
    )
    call = helper.make_node("Twice", ["x", "w"], ["y"], domain="mine")
    model = graph([call], {"x": [3, 4]}, {"w": half(4, 6)})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert st3fx.count_flops(saved(model, tmp_path)).sparse_macs == 36


def test_a_convolution_of_other_channels_than_it_is_given_is_not_counted(tmp_path: Path) -> None:
    """ONNX infers a shape all the same; a small file may so have a weight of gigabytes."""
    weight = np.ones((4, 5, 1, 1), F32)
    for op, sizes, read in (("Conv", [1, 3, 8, 8], 5), ("ConvTranspose", [1, 3, 8, 8], 4)):
        report = _count(tmp_path, [node(op, "x", "w")], {"x": sizes}, {"w": weight})
        assert report.unknown == {op: 1}
        sizes[1] = read
        assert not _count(tmp_path, [node(op, "x", "w")], {"x": sizes}, {"w": weight}).unknown
