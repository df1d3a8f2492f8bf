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
from onnx import TensorProto, helper, numpy_helper

from st3fx import native, runtime
from st3fx.errors import NativeError
from tests.runtime import ops

ISAS = native.available_isas()


@pytest.mark.parametrize("isa", ISAS)
def test_sizes_that_follow_each_other(isa: str) -> None:
    session = ops.small_conv().session(isa)
    fresh = {size: ops.small_conv().session(isa) for size in ((5, 6), (6, 5), (40, 30))}
    for batch, size in ((1, (5, 6)), (2, (6, 5)), (1, (40, 30)), (3, (5, 6)), (1, (6, 5))):
        x = np.random.default_rng(1).standard_normal((batch, 8, *size)).astype(np.float32)
        expected = fresh[size].run(None, {"x": x})[0]
        assert np.array_equal(session.run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("isa", ISAS)
def test_concurrent_runs_give_what_single_ones_give(isa: str) -> None:
    session = ops.small_conv(input_layout="nchw", output_layout="blocked").session(isa, threads=2)
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


@pytest.mark.parametrize(
    ("name", "plain_name"),
    [("model.sparse.onnx", "model.onnx"), ("model.onnx", "model.plain.onnx")],
)
def test_a_refused_file_names_the_plain_one(tmp_path: Path, name: str, plain_name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no model")
    plain = tmp_path / plain_name
    with pytest.raises(NativeError) as caught:
        runtime.session(path)
    assert str(plain) not in str(caught.value)
    plain.write_bytes(b"")
    with pytest.raises(NativeError, match="is the same model in ONNX's own operators") as caught:
        runtime.session(path)
    assert str(plain) in str(caught.value)


def test_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, plain = tmp_path / "model.sparse.onnx", tmp_path / "model.onnx"
    sparse.write_bytes(ops.small_conv().model())
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
    path.write_bytes(ops.small_conv().model())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = runtime.session(path, threads=2, options=options)
    assert session.get_session_options().intra_op_num_threads == 2
    assert session.get_session_options().log_severity_level == 3
    assert session.get_providers() == ["CPUExecutionProvider"]
    moved = shutil.copy(path, tmp_path / "other.onnx")
    assert runtime.session(moved).get_inputs()[0].name == "x"


def test_options_may_serve_several_sessions(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(ops.small_conv().model())
    options = ort.SessionOptions()
    x = np.random.default_rng(0).standard_normal((1, 8, 5, 6), dtype=np.float32)
    options.register_custom_ops_library(runtime.library())
    sessions = [runtime.session(path, options=options) for _ in range(3)]
    options.register_custom_ops_library(runtime.library())
    sessions.append(ort.InferenceSession(path, options))
    first, *others = (session.run(None, {"x": x})[0] for session in sessions)
    assert np.ptp(first) > 0
    assert all(np.array_equal(first, other) for other in others)
