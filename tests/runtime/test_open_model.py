"""Files that are refused before any library sees what they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from st3fx.errors import FlopsError
from st3fx.runtime.open_model import open_model


def _model() -> onnx.ModelProto:
    """A convolution, a shape that is given, and a branch."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    sizes = numpy_helper.from_array(np.array([1, 4]), "sizes")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["made"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4])],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[1, 1], pads=[1, 1, 1, 1]),
        helper.make_node("ConstantOfShape", ["sizes"], ["made"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        ],
        [weight, sizes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _opened(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return open_model(path, FlopsError)


def _sizes(model: onnx.ModelProto, *sizes: int) -> None:
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array(sizes), "sizes"))


def _doubling(model: onnx.ModelProto) -> None:
    """Functions that each call the one before twice: 2³⁰ nodes."""
    for level in range(30):
        inner = (f"f{level - 1}", "own") if level else ("Neg", "")
        nodes = [
            helper.make_node(inner[0], [name], [other], domain=inner[1])
            for name, other in (("a", "b"), ("b", "c"))
        ]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.functions.append(
            helper.make_function("own", f"f{level}", ["a"], ["c"], nodes, opsets)
        )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("f29", ["y"], ["last"], domain="own"))


def _sparse(model: onnx.ModelProto, place: int, sizes: list[int]) -> None:
    made = model.graph.sparse_initializer.add(dims=sizes)
    made.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    made.indices.CopyFrom(numpy_helper.from_array(np.array([place])))


def _external(model: onnx.ModelProto, **info: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in info.items():
        tensor.external_data.add(key=key, value=value)


def _attribute(model: onnx.ModelProto, index: int = 0) -> onnx.AttributeProto:
    found: onnx.AttributeProto = model.graph.node[0].attribute[index]
    return found


BAD: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "short data": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "has 4 of 432 bytes"
    ),
    "huge sizes": (lambda m: m.graph.initializer[0].dims.append(10**12), "432 of 432,000"),
    "negative sizes": (lambda m: m.graph.initializer[0].dims.extend([-1, -1]), "has sizes"),
    "no such type": (
        lambda m: setattr(m.graph.initializer[0], "data_type", 99), "'w' is of type 99"
    ),
    "no such type of an input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77), "is of type 77"
    ),
    "a huge input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 1 << 40),
        "the input 'x' has",
    ),
    "no numbers": (lambda m: m.graph.initializer[0].ClearField("raw_data"), "has 0 numbers"),
    "the same weight twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two weights have the name"
    ),
    "the same value twice": (
        lambda m: m.graph.node.append(m.graph.node[0]), "two nodes give the value 'y'"
    ),
    "a circle": (
        lambda m: m.graph.node.extend(
            [helper.make_node("Neg", ["p"], ["q"]), helper.make_node("Neg", ["q"], ["p"])]
        ),
        "depend on each other in a circle",
    ),
    "zero strides": (lambda m: _attribute(m, 1).ints.__setitem__(0, 0), r"has strides \[0, 1\]"),
    "negative pads": (lambda m: _attribute(m).ints.__setitem__(0, -1), r"has pads \[-1"),
    "huge pads": (lambda m: _attribute(m).ints.__setitem__(0, 1 << 60), "has pads"),
    "an attribute of no type": (lambda m: setattr(_attribute(m), "type", 0), "is of no type"),
    "the same attribute twice": (
        lambda m: m.graph.node[0].attribute.append(_attribute(m)), "has 'pads' twice"
    ),
    "too few inputs": (lambda m: m.graph.node[0].input.pop(), "has 1 inputs"),
    "no outputs": (lambda m: m.graph.node[0].output.pop(), "has no output"),
    "a lost output": (
        lambda m: setattr(m.graph.output[0], "name", "lost"), "nothing makes the output 'lost'"
    ),
    "a huge constant": (lambda m: _sizes(m, 1 << 20, 1 << 20), "makes 1.1e.12 scalars"),
    "a huge sparse weight": (lambda m: _sparse(m, 0, [1 << 20, 1 << 20]), "of which it stores 1"),
    "a place outside": (lambda m: _sparse(m, 9, [2, 2]), "a place that is not in it"),
    "functions in functions": (_doubling, "has more than 524,288 nodes"),
    "a name with a letter that is none": (
        lambda m: setattr(m.graph.node[0], "name", "a\0b"), "in which a letter is none"
    ),
    "no version": (lambda m: setattr(m, "ir_version", 1 << 40), "has the version 1099"),
    "no opset": (lambda m: setattr(m.opset_import[0], "version", -1), "has opset -1"),
    "weights outside": (lambda m: _external(m, location="../w"), "is not in its folder"),
    "weights nowhere": (lambda m: _external(m, location="none"), "none, which is not beside it"),
    "weights in the folder itself": (lambda m: _external(m, location="."), "folder, not a file"),
    "weights of a wrong length": (
        lambda m: _external(m, location="m.onnx", length="1"), "has 1 of 432 bytes"
    ),
    "weights at no place": (
        lambda m: _external(m, location="m.onnx", offset="x"), "has its data at no place"
    ),
    "weights beyond the end": (
        lambda m: _external(m, location="m.onnx", offset="9999"), "m.onnx.* is truncated"
    ),
}  # fmt: skip


def test_a_good_file_is_opened(tmp_path: Path) -> None:
    assert _opened(_model(), tmp_path) == _model()
    turned = _model()
    turned.graph.node.insert(0, turned.graph.node.pop())  # in another order
    assert _opened(turned, tmp_path) == turned


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_refused(name: str, tmp_path: Path) -> None:
    change, message = BAD[name]
    model = _model()
    change(model)
    with pytest.raises(FlopsError, match=message) as caught:
        _opened(model, tmp_path)
    assert "\n" not in str(caught.value)


def _field(number: int, content: bytes) -> bytes:
    """A message in a message, as protobuf writes it."""
    size, left = b"", len(content)
    while left > 127:
        size, left = size + bytes([left & 127 | 128]), left >> 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + content


def test_graphs_in_graphs_end(tmp_path: Path) -> None:
    content = _model().graph.SerializeToString()
    for _ in range(1000):
        content = _field(1, _field(5, _field(6, content)))  # node, attribute, g
    (tmp_path / "m.onnx").write_bytes(_field(7, content))
    with pytest.raises(FlopsError, match="is not an ONNX file, or is broken"):
        open_model(tmp_path / "m.onnx", FlopsError)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FlopsError, match="pipe is a pipe, not a file"):
        open_model(tmp_path / "pipe", FlopsError)
    with pytest.raises(FlopsError, match="is a folder"):
        open_model(tmp_path, FlopsError)
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 31)
    with pytest.raises(FlopsError, match="has 2 GiB or more"):
        open_model(tmp_path / "large", FlopsError)
