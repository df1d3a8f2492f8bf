"""Damage to a file of ours is noticed; what another tool makes of it is theirs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from st3fx.errors import FlopsError
from st3fx.export.write import save_proto
from st3fx.runtime.open_model import open_model


def _written(path: Path, limit: int | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor("w", TensorProto.FLOAT, [64, 64], bytes(4 * 64 * 64), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="other", value="kept")
    save_proto(model, path, limit=limit)
    return open_model(path, FlopsError)


def test_every_bit_of_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = _written(path)
    assert [item.key for item in whole.metadata_props] == ["other"]
    assert onnx.load(path).graph == whole.graph
    content = path.read_bytes()
    for place in range(0, len(content), 61):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert open_model(path, FlopsError).graph == whole.graph
        except FlopsError:
            continue
        assert place < 82  # a damaged digest is none, whatever it is of


def test_a_file_of_weights_beside_it_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = _written(path, limit=0)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    with pytest.raises(FlopsError, match=r"m\.onnx\.data was damaged or edited"):
        open_model(path, FlopsError)
    data.unlink()
    with pytest.raises(FlopsError, match=r"its weights in m\.onnx\.data, which is not beside it"):
        open_model(path, FlopsError)
    assert whole.graph.initializer[0].raw_data == bytes(4 * 64 * 64)


def test_what_another_tool_writes_is_theirs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    _written(path)
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, path)
    assert open_model(path, FlopsError).graph == model.graph
