"""The dense counterpart: no zeros, and otherwise the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from st3fx.bench.twin import write_dense
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
