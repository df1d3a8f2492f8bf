"""Damaged models and wrong inputs are refused with a reason; none of them crashes the process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from st3fx import native, runtime
from st3fx.errors import NativeError
from tests.runtime import ops

ISAS = native.available_isas()


@pytest.fixture(autouse=True)
def _unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is what the library refuses by itself, in sessions of anybody's."""
    monkeypatch.setattr("st3fx.runtime.inference.open_model", lambda *_, **__: None)


def damaged(name: str, change: Any) -> ops.Node:
    """The small convolution with one constant changed."""
    node = ops.small_conv()
    constants = dict(node.constants)
    constants[name] = change(constants[name].copy())
    return ops.Node(node.op, node.attributes, node.inputs, constants)


def put(index: int, value: int) -> Any:
    """Writes one element."""

    def change(array: NDArray[Any]) -> NDArray[Any]:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        (damaged("columns", put(3, 72)), "has column 72 of 72"),
        (damaged("columns", put(0, 65_535)), "has column 65535 of 72"),
        (damaged("columns", lambda a: a[::-1].copy()), "columns do not rise"),
        (damaged("columns", lambda a: a[:-1]), "columns of shape"),
        (damaged("columns", lambda a: a.astype(np.int64)), "neither uint16 nor uint32"),
        (damaged("values", lambda a: a[:5]), "values of shape"),
        (damaged("values", lambda a: a.reshape(1, -1)), "values of shape"),
        (damaged("row_starts", put(0, 1)), "row_starts begins with 1"),
        (damaged("row_starts", put(4, 10_000)), "row 3 ends behind the last of"),
        (damaged("row_starts", put(4, -7)), "row_starts falls at row 3"),
        (damaged("row_starts", lambda a: a[:-1]), "row_starts ends with"),
        (damaged("row_starts", lambda a: a[:0]), "row_starts of shape"),
        (damaged("bias", lambda a: a[:-1]), "bias of shape [11] for 12 outputs"),
        (ops.small_conv(channels=7), "has column"),
        (ops.small_conv(channels=0), "attribute 'channels'"),
        (ops.small_conv(group=3), "8 channels do not fall into 3 groups"),
        (ops.small_conv(kernel_shape=(3,)), "'kernel_shape' needs two numbers"),
        (ops.small_conv(strides=(0, 1)), "'strides' is out of range: [0, 1]"),
        (ops.small_conv(pads=(1, 1)), "'pads' needs 4 numbers, not 2"),
        (ops.small_conv(pads=(-1, 0, 0, 0)), "'pads' is out of range"),
        (ops.small_conv(input_layout="nhwc"), "'nhwc' is neither"),
        (ops.small_conv(activation="gelu"), "'gelu' is none of none, relu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_weights_are_refused_when_loaded(
    isa: str, node: ops.Node, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.sparse.onnx"
    path.write_bytes(node.model())
    with native.using_isa(isa), pytest.raises(NativeError) as caught:
        runtime.session(path)
    assert complaint in str(caught.value)
    assert "SparseConv 'node'" in str(caught.value)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((1, 7, 9, 9), "input of shape [1, 7, 9, 9], but 8 channels"),
        ((8, 9, 9), "is no batch of images"),
    ],
)
def test_wrong_inputs_are_refused_when_run(
    isa: str, shape: tuple[int, ...], complaint: str
) -> None:
    session = ops.small_conv().session(isa)
    with pytest.raises(Exception, match="st3fx: SparseConv 'node'") as caught:
        session.run(None, {"x": np.zeros(shape, np.float32)})
    assert complaint in str(caught.value)


def test_images_smaller_than_the_kernel() -> None:
    session = ops.small_conv(pads=(0, 0, 0, 0)).session()
    with pytest.raises(Exception, match="images of 2x9 are smaller than the kernel"):
        session.run(None, {"x": np.zeros((1, 8, 2, 9), np.float32)})


def test_truncated_files_never_crash(tmp_path: Path) -> None:
    model = ops.small_conv().model()
    path = tmp_path / "model.sparse.onnx"
    refused = 0
    for size in range(0, len(model), 37):
        path.write_bytes(model[:size])
        with pytest.raises(NativeError, match="cannot be loaded"):
            runtime.session(path)
        refused += 1
    assert refused > 40


@pytest.mark.slow
def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    model = bytearray(ops.small_conv().model())
    generator = np.random.default_rng(5)
    path = tmp_path / "model.sparse.onnx"
    x = np.ones((1, 8, 6, 6), np.float32)
    for _ in range(300):
        damaged_model = bytearray(model)
        for at in generator.integers(0, len(model), 3):
            damaged_model[at] = generator.integers(256)
        path.write_bytes(damaged_model)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        with contextlib.suppress(
            Exception
        ):  # refused, or a model of another meaning: both are fine
            session = runtime.session(path, options=options)
            session.run(None, {session.get_inputs()[0].name: x})
