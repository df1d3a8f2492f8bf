"""Models whose weights lie beside the file, here from a few bytes on: again, smaller, elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx import runtime
from st3fx.bench.dense import write_dense
from st3fx.export.export_result import ExportResult
from tests.passes.onnx.graphs import SPARSE_WINS

X = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("st3fx.export.write.ONE_FILE", 2_000)
    monkeypatch.setattr("st3fx.export.sparse.load_calibration", lambda: SPARSE_WINS)
    # The folder of the files is the working directory, as it is for most who call the command.
    monkeypatch.chdir(tmp_path)


def net(seed: int, width: int = 30) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 40))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(torch.rand(parameter.shape) < 0.5)
    return model.eval()


def export(model: nn.Module, **options: Any) -> ExportResult:
    options = {"batch_sizes": (2,), **options}
    return st3fx.export_onnx(model, X, "m.onnx", **options)


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def output(path: Path, x: Tensor = X) -> Any:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sparse_initializers": True}])
def test_an_export_replaces_both_files_of_the_one_before(options: dict[str, Any]) -> None:
    for seed in range(2):
        model = net(seed)
        result = export(model, **options)
        assert names() == ["m.onnx", "m.onnx.data"] == [path.name for path in result.files]
        with torch.no_grad():
            np.testing.assert_allclose(output(result.path), model(X).numpy(), atol=1e-5)
    stored = sum(p.nbytes for p in model.parameters() if p.nbytes >= 1024)
    assert Path("m.onnx.data").stat().st_size == stored


@pytest.mark.slow
def test_weights_that_nothing_names_any_more_go(monkeypatch: pytest.MonkeyPatch) -> None:
    export(net(0))
    monkeypatch.setattr("st3fx.export.write.ONE_FILE", 100_000)
    export(net(1))
    assert names() == ["m.onnx"]
    # What no file of ours names is somebody else's.
    Path("m.onnx.data").write_bytes(b"somebody's")
    export(net(2))
    assert names() == ["m.onnx", "m.onnx.data"]
    assert Path("m.onnx.data").read_bytes() == b"somebody's"


@pytest.mark.slow
def test_with_sparse_kernels() -> None:
    for seed in range(2):
        model = net(seed)
        result = export(model, sparse_kernels=True)
        assert names() == ["m.onnx", "m.onnx.data", "m.plain.onnx", "m.plain.onnx.data"]
        assert result.plain is not None
        session = runtime.session(result.path)
        given = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
        np.testing.assert_allclose(given, output(result.plain), atol=1e-5)
        assert [size.raw for size in result.sizes[1:]] == [
            Path(name).stat().st_size + Path(f"{name}.data").stat().st_size
            for name in ("m.plain.onnx", "m.onnx")
        ]  # fmt: skip
    # A plain file in the place of the sparse one.
    export(net(3, width=2))
    assert names() == ["m.onnx", "m.plain.onnx", "m.plain.onnx.data"]


@pytest.mark.slow
def test_a_failure_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(0)
    export(model)
    before = {name: Path(name).read_bytes() for name in names()}
    monkeypatch.setattr("st3fx.export.parity.difference", lambda *pair: (1.0, 1.0))
    with pytest.raises(st3fx.St3fxError, match="ONNX Runtime and PyTorch differ"):
        export(net(1))
    assert {name: Path(name).read_bytes() for name in names()} == before


@pytest.mark.slow
def test_a_dense_counterpart_beside_one_of_that_name(tmp_path: Path) -> None:
    result = export(net(0))
    zeros = [name for name, p in net(0).named_parameters() if name.endswith("weight")]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    Path("dense.onnx.data").write_bytes(b"somebody's")
    for _ in range(2):
        assert write_dense(result.path, folder / "dense.onnx", zeros) > 0
    model = onnx.load(folder / "dense.onnx")
    assert all((onnx.numpy_helper.to_array(item) != 0).all() for item in model.graph.initializer)
    assert Path("dense.onnx.data").read_bytes() == b"somebody's"
