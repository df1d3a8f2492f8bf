"""The dense counterpart: no zeros, and otherwise the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import st3fx
from st3fx.bench.dense import write_dense
from st3fx.bench.variant import Array
from tests.flops.graphs import graph


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_only_the_zeros_of_the_named_weights_change(tmp_path: Path, dtype: type[Any]) -> None:
    generator = np.random.default_rng(0)
    weight: Array = (generator.standard_normal((64, 64)) * 0.1).astype(dtype)
    weight[np.abs(weight) < 0.16] = 0
    other: Array = np.zeros((64, 64), dtype)
    first = helper.make_node("MatMul", ["x", "w"], ["h"])
    second = helper.make_node("MatMul", ["h", "v"], ["y"])
    model = graph([first, second], {"x": ["n", 64]}, {"w": weight, "v": other})
    onnx.save(model, tmp_path / "sparse.onnx")
    zeros = int((weight == 0).sum())
    count = write_dense(tmp_path / "sparse.onnx", tmp_path / "dense.onnx", ["w", "no such"])
    assert count == zeros > 3000
    dense = onnx.load(tmp_path / "dense.onnx")
    found = {item.name: numpy_helper.to_array(item) for item in dense.graph.initializer}
    assert found["w"].dtype == dtype
    assert np.count_nonzero(found["w"]) == 64 * 64
    assert np.array_equal(found["w"][weight != 0], weight[weight != 0])
    assert not found["v"].any()
    # What a layer computes keeps its size, and no number is denormal.
    assert np.square(found["w"]).sum() == pytest.approx(np.square(weight).sum(), rel=0.03)
    assert np.abs(found["w"]).min() > np.finfo(dtype).tiny
    assert [node.op_type for node in dense.graph.node] == ["MatMul", "MatMul"]


def test_nothing_is_written_where_there_are_no_zeros(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([node], {"x": ["n", 2]}, {"w": np.ones((2, 2), np.float32)})
    onnx.save(model, tmp_path / "model.onnx")
    assert write_dense(tmp_path / "model.onnx", tmp_path / "dense.onnx", ["w"]) == 0
    assert not (tmp_path / "dense.onnx").exists()


def test_a_weight_that_lost_everything(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([node], {"x": ["n", 2]}, {"w": np.zeros((2, 2), np.float32)})
    onnx.save(model, tmp_path / "model.onnx")
    assert write_dense(tmp_path / "model.onnx", tmp_path / "dense.onnx", ["w"]) == 4
    (item,) = onnx.load(tmp_path / "dense.onnx").graph.initializer
    assert np.count_nonzero(numpy_helper.to_array(item)) == 4


@pytest.mark.parametrize("indices", [[1, 3], [[0, 1], [1, 1]]])
def test_a_sparse_initializer_becomes_dense(tmp_path: Path, indices: list[int]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = graph([node], {"x": ["n", 2]})
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    places = numpy_helper.from_array(np.array(indices, np.int64), "w_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 2]))
    onnx.save(model, tmp_path / "model.onnx")
    assert write_dense(tmp_path / "model.onnx", tmp_path / "dense.onnx", ["w"]) == 2
    dense = onnx.load(tmp_path / "dense.onnx")
    (item,) = dense.graph.initializer
    assert item.name == "w"
    assert numpy_helper.to_array(item)[:, 1].tolist() == [5, 7]
    assert np.count_nonzero(numpy_helper.to_array(item)) == 4
    assert not dense.graph.sparse_initializer


def test_weights_in_constant_nodes_and_in_any_order(tmp_path: Path) -> None:
    """As converters of other frameworks write them, in a body too."""
    weight = numpy_helper.from_array(np.array([[0, 1], [-0.0, 2]], np.float32))
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["v"], value=weight),
         helper.make_node("MatMul", ["h", "v"], ["r"])],
        "branch", [], [helper.make_empty_tensor_value_info("r")],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Constant", [], ["w"], value=weight),
    ]
    model = graph(nodes, {"x": [3, 2]}, {"flag": np.array(True)})
    model.graph.output[0].name = "y"
    onnx.save(model, tmp_path / "model.onnx")
    report = st3fx.count_flops(tmp_path / "model.onnx")
    names = [row.name for row in report.by_layer.values() if row.nonzeros < row.parameters]
    assert write_dense(tmp_path / "model.onnx", tmp_path / "dense.onnx", names) == 4
    dense = st3fx.count_flops(tmp_path / "dense.onnx")
    assert dense.sparse_macs == dense.dense_macs == report.dense_macs == 24
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "dense.onnx"), options)


QUANTISED: dict[str, tuple[str, dict[str, Any], Array]] = {
    "one zero point": ("DequantizeLinear", {}, np.array(3, np.int8)),
    "by row": ("DequantizeLinear", {"axis": 0}, np.array([1, -128, 127], np.int8)),
    "by column": ("DequantizeLinear", {"axis": 1}, np.array([1, -128, 127, 0], np.int8)),
    "integer product": ("MatMulInteger", {}, np.array([1, -128, 127, 0], np.int8)),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_get_neighbours_of_their_zero_point(name: str, tmp_path: Path) -> None:
    op, about, zero = QUANTISED[name]
    spread = zero.reshape(-1, 1) if about.get("axis") == 0 else zero
    weight = np.broadcast_to(spread, (3, 4)).copy()
    weight[1] = 5
    scale = np.ones(zero.shape, np.float32)
    if op == "MatMulInteger":
        nodes = [helper.make_node(op, ["x", "w", "", "z"], ["y"])]
    else:
        nodes = [helper.make_node(op, ["w", "s", "z"], ["d"], **about),
                 helper.make_node("MatMul", ["x", "d"], ["y"])]  # fmt: skip
    kind = onnx.TensorProto.INT8 if op == "MatMulInteger" else onnx.TensorProto.FLOAT
    model = graph(nodes, {"x": [2, 3]}, {"w": weight, "s": scale, "z": zero}, kind=kind)
    onnx.save(model, tmp_path / "model.onnx")
    assert write_dense(tmp_path / "model.onnx", tmp_path / "dense.onnx", ["w"]) == 8
    report = st3fx.count_flops(tmp_path / "dense.onnx")
    assert report.sparse_macs == report.dense_macs == 24
    arrays = {i.name: numpy_helper.to_array(i)
              for i in onnx.load(tmp_path / "dense.onnx").graph.initializer}  # fmt: skip
    assert np.array_equal(arrays["w"][1], weight[1])
    assert np.abs(arrays["w"].astype(int) - weight).max() == 1
