"""Sessions: their options, their providers, and factories of other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from st3fx.bench import onnx_call
from st3fx.bench.rounds import Process
from st3fx.bench.variant import Array, Variant, locate
from st3fx.errors import BenchError
from tests.flops.graphs import graph

CPU = ["CPUExecutionProvider"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    onnx.save(graph([node], {"x": ["n", 2]}, {"w": np.full((2, 3), 2, np.float32)}),
              tmp_path / "model.onnx")  # fmt: skip
    return str(tmp_path / "model.onnx")


def _computed(inputs: Array, folder: Path, **arguments: Any) -> tuple[Any, str]:
    """What a session computes, and its runtime."""
    given = {"providers": CPU, **arguments}
    variant = Variant("a", "tests.bench.fakes:shown", given, lambda _: [inputs])
    with _process(variant, folder) as process:
        return json.loads(process.ready["runtime"]), process.ready["provider"]


def _process(variant: Variant, folder: Path) -> Process:
    np.savez(folder / "inputs.npz", *variant.inputs(1))
    return Process(variant, folder / "inputs.npz", threads=1)


def test_a_call_computes_the_graph(path: str, tmp_path: Path) -> None:
    output, runtime = _computed(np.ones((4, 2), np.float32), tmp_path, path=path)
    assert output == [[4.0] * 3] * 4
    assert runtime == f"onnxruntime {onnxruntime.__version__}"


def test_options_that_times_depend_on() -> None:
    options = onnx_call.session_options(3)
    entries = {key: options.get_session_config_entry(key) for key in onnx_call.CONFIG}
    assert entries == {
        "session.set_denormal_as_zero": "1",
        "session.intra_op.allow_spinning": "1",
        "session.force_spinning_stop": "1",
    }
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    with pytest.raises(Exception, match=r"none\.so"):
        onnx_call.session_options(1, "none.so")


def test_denormals_are_zero(tmp_path: Path) -> None:
    """The options do what they say: a denormal product is flushed, which a plain session keeps."""
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    tiny = np.full(64, 1e-20, np.float32)
    onnx.save(graph([node], {"x": [64]}, {"w": tiny}), tmp_path / "tiny.onnx")
    file = str(tmp_path / "tiny.onnx")
    kept, _ = _computed(tiny, tmp_path, path=file, flush=False)
    flushed, _ = _computed(tiny, tmp_path, path=file)
    assert 0 < max(kept) < 1.1e-40
    assert max(flushed) == 0


def test_a_factory_of_its_own(path: str, tmp_path: Path) -> None:
    """The seam for kernels that skip zeros: a variant brings its session along."""
    arguments = {"path": path, "providers": CPU, "session": "tests.bench.fakes:session"}
    marks: list[int] = []
    prepared = onnx_call.prepare([np.ones(2)], 2, lambda held=0: marks.append(held), **arguments)  # type: ignore[arg-type]
    assert prepared.call() == "model.onnx 2 ['x']"
    assert marks == [0]
    variant = Variant("sparse kernels", onnx_call.PREPARE, arguments, lambda _: [np.ones(1)])
    with _process(variant, tmp_path) as process:
        assert process.ready["provider"] == "Sparse"
        assert len(process.run(3)) == 3


def test_a_factory_is_a_variant_s_prepare() -> None:
    assert locate(onnx_call.PREPARE) is onnx_call.prepare


def test_providers_by_short_names() -> None:
    assert onnx_call.known_providers(["cpu", "CPUExecutionProvider"]) == tuple(CPU * 2)
    with pytest.raises(BenchError, match="provider 'tpu' is not in this ONNX Runtime: choose from"):
        onnx_call.known_providers(["cpu", "tpu"])


def test_a_provider_that_was_not_taken_is_an_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = onnxruntime.InferenceSession(path, providers=CPU)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: plain)
    with pytest.raises(BenchError, match="cannot use CUDAExecutionProvider on this"):
        onnx_call.prepare(
            [np.ones((1, 2))], 1, lambda held=0: None, path=path,
            providers=["CUDAExecutionProvider"],
        )  # fmt: skip


def test_what_onnx_runtime_refuses_is_one_line(path: str, tmp_path: Path) -> None:
    """Inputs of another size than the weight's: ONNX Runtime says so, without its own prefix."""
    arguments = {"path": path, "providers": CPU}
    variant = Variant("odd", onnx_call.PREPARE, arguments, lambda _: [np.ones((1, 5), np.float32)])
    with pytest.raises(BenchError) as caught, _process(variant, tmp_path):
        pass
    assert str(caught.value).startswith("ONNX Runtime cannot run odd: Got invalid dimensions for")
