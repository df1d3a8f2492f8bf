"""What is read of an ONNX file, and files that cannot be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from st3fx.bench.onnx_file import InputPort, read_inputs
from st3fx.errors import BenchError
from tests.flops.graphs import graph

PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])
WEIGHT = np.ones((64, 64), np.float32)


def _saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def test_inputs_without_the_weights(tmp_path: Path) -> None:
    model = graph([PRODUCT], {"x": ["n", 64], "w": [64, 64]}, {"w": WEIGHT})
    assert read_inputs(_saved(model, tmp_path)) == (
        InputPort("x", np.dtype(np.float32), ("n", 64)),
    )
    unnamed = graph([PRODUCT], {"x": [1, 64]}, {"w": WEIGHT})
    unnamed.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    assert read_inputs(_saved(unnamed, tmp_path))[0].shape == ("?", 64)


def test_weights_in_another_file(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "w.data"
    model = graph([PRODUCT], {"x": [1, 64]}, {"w": WEIGHT})
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert len(read_inputs(path)) == 1
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(BenchError, match=r"w.data, with its weights, is truncated: it"):
        read_inputs(path)
    data.unlink()
    with pytest.raises(BenchError, match=r"its weights in w.data, which is not beside it: export"):
        read_inputs(path)


def test_what_is_no_graph(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    empty = _saved(graph([PRODUCT], {}), tmp_path, "empty.json")
    empty.write_text("{}")
    (tmp_path / "nothing.onnx").write_bytes(b"")
    for name, message in {
        "text.onnx": "text.onnx is not an ONNX file, or is broken",
        "empty.json": "empty.json is not an ONNX file, or is broken",
        "nothing.onnx": "nothing.onnx is not an ONNX file, or has an empty graph",
        "none.onnx": "no file ",
        ".": "is a folder",
    }.items():
        with pytest.raises(BenchError, match=message):
            read_inputs(tmp_path / name)


def test_operators_that_nobody_has(tmp_path: Path) -> None:
    node = helper.make_node("Mine", ["x"], ["y"], name="odd", domain="my.ops")
    path = _saved(graph([node], {"x": [3, 4]}), tmp_path)
    with pytest.raises(BenchError, match=r"node 'odd' is Mine of the domain my\.ops") as caught:
        read_inputs(path)
    assert "give the library of its operators by --custom-ops" in str(caught.value)
    assert len(read_inputs(path, custom_ops=True)) == 1
    inner = helper.make_graph([node], "then", [], [helper.make_empty_tensor_value_info("y")])
    branch = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    with pytest.raises(BenchError, match=r"Mine of the domain my\.ops"):
        read_inputs(_saved(graph([branch], {"c": [1], "x": [3]}), tmp_path))
    gelu = helper.make_node("FastGelu", ["x"], ["y"], domain="com.microsoft")
    assert len(read_inputs(_saved(graph([gelu], {"x": [3]}), tmp_path))) == 1


def test_inputs_that_no_values_can_be_made_for(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    half = graph([relu], {"x": [3]}, kind=TensorProto.BFLOAT16)
    with pytest.raises(BenchError, match="input x is of type bfloat16"):
        read_inputs(_saved(half, tmp_path))
    words = graph([relu], {"x": [3]}, kind=TensorProto.STRING)
    with pytest.raises(BenchError, match="input x is of type string"):
        read_inputs(_saved(words, tmp_path))
    shapeless = graph([relu], {"x": [3]})
    shapeless.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(BenchError, match="input x has no shape in the graph"):
        read_inputs(_saved(shapeless, tmp_path))
    several = graph([relu], {"x": [3]})
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [3]))
    several.graph.input[0].type.CopyFrom(kind)
    with pytest.raises(BenchError, match="input x is no tensor"):
        read_inputs(_saved(several, tmp_path))
