"""Weights whose zeros are negative, as masks leave them: they are zeros in every file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import st3fx
from st3fx.cli import main
from st3fx.export.zeros import initializers
from tests.passes.onnx.graphs import SPARSE_WINS


@torch.no_grad()
def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(),
                          nn.Linear(64, 40))  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(torch.rand(parameter.shape) < 0.2)
    return model.eval()


def signs(weights: Any) -> set[bool]:
    """Whether there are positive zeros, and whether negative ones."""
    arrays = [np.asarray(weight) for weight in weights]
    return {bool(s) for a in arrays if a.ndim > 1 for s in np.signbit(a[a == 0])}


def zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def program(tmp_path: Path) -> nn.Module:
    """What ``torch.export`` saves and loads."""
    model = net()
    assert signs(p.detach() for p in model.parameters()) == {False, True}
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (X,), dynamic_shapes=shapes), tmp_path / "m.pt2")
    return torch.export.load(tmp_path / "m.pt2").module()


@pytest.mark.slow
def test_a_program_of_torch_export(tmp_path: Path, program: nn.Module) -> None:
    counted = st3fx.count_flops(program, X)
    assert counted.sparse_macs == st3fx.count_flops(net(), X).sparse_macs < counted.dense_macs / 3
    model, sparsifier = st3fx.convert(program, X, total_steps=10, verify=False)
    assert sparsifier.sparsity == pytest.approx(zeros(program) / 5296, abs=1e-4)
    folded = st3fx.fold(model)
    assert zeros(folded) == zeros(program)
    assert signs(p.detach() for p in folded.parameters()) == {False}
    result = st3fx.export_onnx(program, X, tmp_path / "m.onnx", sparse_initializers=True)
    assert (result.zeros.zeros, result.zeros.elements) == (zeros(program), 5296)
    assert result.sparse_initializers == 3
    assert signs(initializers(onnx.load(result.path)).values()) == {False}
    assert st3fx.count_flops(result.path, [X.shape]).sparse_macs == counted.sparse_macs
    dense = st3fx.export_onnx(program, X, tmp_path / "dense.onnx")
    assert signs(initializers(onnx.load(dense.path)).values()) == {False}


def test_a_program_that_fold_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = net()
    torch.save(model.state_dict(), "weights.pt")
    Path("net.py").write_text(
        "from torch import nn\ndef build_model():\n    return nn.Sequential(nn.Conv2d(3, 16, 3), "
        "nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 40))\n"
    )
    done = CliRunner().invoke(main, ["fold", "net.py", "--weights", "weights.pt", "-i", "2x3x6x6",
                                     "--eliminate-dead-channels", "-o", "net.pt2"])  # fmt: skip
    assert done.exit_code == 0, done.output
    program = torch.export.load("net.pt2").module()
    assert zeros(program) == zeros(model)
    assert signs(p.detach() for p in program.parameters()) == {False}
    torch.testing.assert_close(program(X), model(X))


@pytest.mark.slow
def test_the_sparse_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st3fx.export.sparse.load_calibration", lambda: SPARSE_WINS)
    result = st3fx.export_onnx(net(), X, tmp_path / "m.onnx", sparse_kernels=True)
    assert result.sparse is not None
    assert result.sparse.kernels.sparse == 3
    assert result.zeros.zeros == zeros(net())
    assert st3fx.count_flops(result.path, [X.shape]).weight_nonzeros == 5296 - zeros(net())


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    values = next(net().parameters()).detach().reshape(-1)[:432].reshape(16, 27).numpy()
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 16] x) => (float[N, 27] y) { y = MatMul (x, w) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    assert signs([values]) == {False, True}
    counted = st3fx.count_flops(tmp_path / "m.onnx", [(1, 16)])
    assert counted.sparse_macs == np.count_nonzero(values) < counted.dense_macs / 3
