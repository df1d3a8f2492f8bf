"""Sessions: other sizes, several threads at once, damaged files, no library."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from st3fx import native, runtime
from st3fx.errors import NativeError
from tests.runtime import ops

ISAS = native.available_isas()


def small_conv(**attributes: Any) -> ops.Node:
    """A 3×3 convolution of eight channels to twelve."""
    generator = np.random.default_rng(0)
    weight = ops.sparse_weight(generator, (12, 8, 3, 3), 0.3)
    bias = generator.standard_normal(12).astype(np.float32)
    return ops.sparse_conv(weight, bias=bias, **({"pads": (1, 1, 1, 1)} | attributes))


@pytest.mark.parametrize("isa", ISAS)
def test_sizes_that_follow_each_other(isa: str) -> None:
    session = small_conv().session(isa)
    fresh = {size: small_conv().session(isa) for size in ((5, 6), (6, 5), (40, 30))}
    for batch, size in ((1, (5, 6)), (2, (6, 5)), (1, (40, 30)), (3, (5, 6)), (1, (6, 5))):
        x = np.random.default_rng(1).standard_normal((batch, 8, *size)).astype(np.float32)
        expected = fresh[size].run(None, {"x": x})[0]
        assert np.array_equal(session.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("isa", ISAS)
def test_concurrent_runs_give_what_single_ones_give(isa: str) -> None:
    session = small_conv(input_layout="nchw", output_layout="blocked").session(isa, threads=2)
    generator = np.random.default_rng(2)
    sizes = [(9, 9), (14, 14), (30, 20), (7, 7)]
    inputs = [generator.standard_normal((2, 8, *size)).astype(np.float32) for size in sizes]
    expected = [ops.plain(session.run(None, {"x": x})[0], "blocked", 12) for x in inputs]
    wrong: list[int] = []

    def work(first: int) -> None:
        for i in range(40):
            k = (first + i) % len(inputs)
            result = ops.plain(session.run(None, {"x": inputs[k]})[0], "blocked", 12)
            if not np.array_equal(result, expected[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_the_sum_overwrites_its_operand() -> None:
    # With static shapes ONNX Runtime gives the output the residual's memory.
    generator = np.random.default_rng(3)
    weight = ops.sparse_weight(generator, (16, 16, 3, 3), 0.3)
    shape = (1, 16, 8, 8)
    attributes: dict[str, Any] = {"channels": 16, "kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    constants = ops.weight_inputs(weight)
    inner = [helper.make_node("Relu", ["x"], [f"r{i}"]) for i in range(2)]
    conv = helper.make_node(
        "SparseConv", ["r0", *constants, "", "r1"], ["y"], domain=runtime.DOMAIN, **attributes
    )
    graph = helper.make_graph(
        [inner[0], helper.make_node("Neg", ["r0"], ["r1"]), conv],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
        value_info=[
            helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("r0", "r1")
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(runtime.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.register_custom_ops_library(runtime.library())
    session = ort.InferenceSession(model.SerializeToString(), options)
    x = generator.standard_normal(shape).astype(np.float32)
    positive = torch.from_numpy(x).double().relu()
    product = torch.nn.functional.conv2d(positive, torch.from_numpy(weight).double(), padding=1)
    ops.assert_close(session.run(None, {"x": x})[0], product - positive)


def damaged(name: str, change: Any) -> ops.Node:
    """The small convolution with one constant changed."""
    node = small_conv()
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
        (small_conv(channels=7), "has column"),
        (small_conv(channels=0), "attribute 'channels'"),
        (small_conv(group=3), "8 channels do not fall into 3 groups"),
        (small_conv(kernel_shape=(3,)), "'kernel_shape' needs two numbers"),
        (small_conv(strides=(0, 1)), "'strides' is out of range: [0, 1]"),
        (small_conv(pads=(1, 1)), "'pads' needs 4 numbers, not 2"),
        (small_conv(pads=(-1, 0, 0, 0)), "'pads' is out of range"),
        (small_conv(input_layout="nhwc"), "'nhwc' is neither"),
        (small_conv(activation="gelu"), "'gelu' is none of none, relu"),
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
    session = small_conv().session(isa)
    with pytest.raises(Exception, match="st3fx: SparseConv 'node'") as caught:
        session.run(None, {"x": np.zeros(shape, np.float32)})
    assert complaint in str(caught.value)


def test_images_smaller_than_the_kernel() -> None:
    session = small_conv(pads=(0, 0, 0, 0)).session()
    with pytest.raises(Exception, match="images of 2x9 are smaller than the kernel"):
        session.run(None, {"x": np.zeros((1, 8, 2, 9), np.float32)})


def test_truncated_files_never_crash(tmp_path: Path) -> None:
    model = small_conv().model()
    path = tmp_path / "model.sparse.onnx"
    refused = 0
    for size in range(0, len(model), 37):
        path.write_bytes(model[:size])
        with pytest.raises(NativeError, match="cannot be loaded"):
            runtime.session(path)
        refused += 1
    assert refused > 40


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    model = bytearray(small_conv().model())
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
        try:
            session = runtime.session(path, options=options)
            session.run(None, {session.get_inputs()[0].name: x})
        except Exception as error:
            assert str(error)  # refused, in words


def test_a_refused_file_names_the_plain_one(tmp_path: Path) -> None:
    path = tmp_path / "model.sparse.onnx"
    path.write_bytes(b"no model")
    plain = tmp_path / "model.onnx"
    with pytest.raises(NativeError) as caught:
        runtime.session(path)
    assert str(plain) not in str(caught.value)
    plain.write_bytes(b"")
    with pytest.raises(NativeError, match="is the same model in ONNX's own operators") as caught:
        runtime.session(path)
    assert str(plain) in str(caught.value)


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, plain = tmp_path / "model.sparse.onnx", tmp_path / "model.onnx"
    sparse.write_bytes(small_conv().model())
    plain.write_bytes(b"")
    native.load.cache_clear()
    monkeypatch.setattr(native, "library_path", lambda: tmp_path / "absent.so")
    try:
        with pytest.raises(NativeError, match="installed without its CPU kernels") as caught:
            runtime.session(sparse)
        assert str(plain) in str(caught.value)
    finally:
        native.load.cache_clear()


def test_session_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.sparse.onnx"
    path.write_bytes(small_conv().model())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = runtime.session(path, threads=2, options=options)
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_session_options().log_severity_level == 3
    assert session.get_providers() == ["CPUExecutionProvider"]
    moved = shutil.copy(path, tmp_path / "other.onnx")
    assert runtime.session(moved).get_inputs()[0].name == "x"
