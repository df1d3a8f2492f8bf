"""Files without dead channels, from Python and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import st3fx
from st3fx.cli import main
from st3fx.commands import export
from st3fx.commands.export import eliminate_dead_channels
from st3fx.errors import ExportError
from tests.export import nets
from tests.export.test_export import X
from tests.nets import Net, image
from tests.passes.channels.nets import Function

MODEL = """
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

        def forward(self, x, scale=2.0):
            return {"y": self.last(self.first(x).relu()) * scale}

    def build_model():
        torch.manual_seed(0)
        model = Small()
        with torch.no_grad():
            model.first.weight[:5] = 0
            model.first.bias[:5] = torch.tensor([0.5, 0.25, -1.0, -1.0, 2.0])
        return model

    def example_inputs():
        return torch.randn(2, 3, 8, 8)
"""

USER = """
import sys
sys.modules["st3fx"] = None  # importing it fails
import torch
import small

model = torch.export.load(sys.argv[1]).module()
x = torch.randn(5, 3, 8, 8)
wanted, given = small.build_model()(x)["y"], model(x)["y"]
print(float((wanted - given).abs().max() / wanted.abs().max()))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    lines = [line.removeprefix("    ") for line in MODEL.strip("\n").splitlines()]
    Path("small.py").write_text("\n".join(lines))
    return tmp_path


def _run(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    return result.exit_code, result.output


def _loaded(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # torch 2.11 warns of how it reads its own files.
        warnings.simplefilter("ignore", UserWarning)
        return torch.export.load(path).module()


@pytest.mark.slow
def test_onnx_is_smaller_and_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    converted, sparsifier = st3fx.convert(Net(), image(), verify=False)
    sparsifier.set_sparsity(0.9)
    folded = st3fx.fold(converted).eval()
    with torch.no_grad():
        first = next(m for m in folded.modules() if isinstance(m, nn.Conv2d))
        first.weight[:3] = 0
    path = tmp_path / "net.onnx"
    result = st3fx.export_onnx(folded, image(), path, eliminate_dead_channels=True)
    assert result.channels is not None
    assert result.channels.channels[1] <= result.channels.channels[0] - 3
    assert result.zeros.elements < sum(p.numel() for p in folded.parameters() if p.dim() > 1)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 4):
        wanted = folded(image(batch)).detach().numpy()
        given = session.run(None, {"x": image(batch).numpy()})[0]
        np.testing.assert_allclose(given, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=0)


@pytest.mark.slow
def test_a_model_is_left_as_it_was_and_a_converted_one_is_folded() -> None:
    converted, sparsifier = st3fx.convert(Net(), image(), verify=False)
    sparsifier.set_sparsity(0.9)
    converted.train()
    before = {name: value.clone() for name, value in converted.state_dict().items()}
    graph, _ = eliminate_dead_channels(converted, image())
    assert converted.training
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items())
    assert not any("st3fx" in name for name in graph.state_dict())
    wanted = st3fx.fold(converted).eval()(image(4))
    assert torch.allclose(graph(image(4)), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nets.TwoSamples(), "works for one batch size only, that of the example"),
        (nets.Branch(), "its forward branches on the values of a tensor"),
    ],
)
def test_what_cannot_be_captured_says_why(model: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        eliminate_dead_channels(model, X)


def test_a_fixed_batch() -> None:
    model = nets.TwoSamples().eval()
    graph, _ = eliminate_dead_channels(model, X, fixed_batch=True)
    assert torch.allclose(graph(X), model(X))


class Noisy(nn.Module):
    """Random numbers in eval mode, and an integer beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y + torch.rand_like(y), y.argmax(-1)


def test_random_numbers_are_no_difference() -> None:
    graph, _ = eliminate_dead_channels(Noisy(), torch.randn(2, 4))
    assert [tensor.shape for tensor in graph(torch.randn(5, 4))] == [(5, 3), (5,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x: x * 1.01, "another output: 0.01 relative, where 0.0001 is allowed"),
        (lambda x: x[:, :2], "gives 2x2 of float32 as output instead of 2x3 of float32"),
        (lambda x: x.double(), "gives 2x3 of float64 as output instead of 2x3 of float32"),
    ],
)
def test_a_graph_that_computes_something_else_is_an_error(
    monkeypatch: pytest.MonkeyPatch, broken: Any, message: str
) -> None:
    """Whatever the analysis may miss: no wrong number leaves without a word."""
    reduce: Any = vars(export)["reduce"]

    def wrong(*args: Any, **kwargs: Any) -> Any:
        graph, report = reduce(*args, **kwargs)
        return nn.Sequential(graph, Function(broken)), report

    monkeypatch.setattr(export, "reduce", wrong)
    with pytest.raises(ExportError, match=message):
        eliminate_dead_channels(nn.Linear(4, 3), torch.randn(2, 4))


def test_a_model_that_is_none() -> None:
    with pytest.raises(ExportError, match=r"give an nn\.Module"):
        eliminate_dead_channels(torch.ones, X)  # type: ignore[arg-type]


@pytest.mark.slow
def test_fold_writes_a_program_that_needs_no_st3fx(folder: Path) -> None:
    code, text = _run("fold", "small.py", "--eliminate-dead-channels")
    assert code == 0, text
    assert "removed 4 of 20 channels" in text
    assert "1 constant channels stay: it stands for the constants that meet a border" in text
    done = subprocess.run(
        [sys.executable, "-c", USER, "small.pt2"], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) <= 1e-6
    loaded = _loaded(folder / "small.pt2")
    assert loaded.state_dict()["first.weight"].shape == (12, 3, 3, 3)
    assert not list(folder.glob("*.part"))


def test_fold_as_json(folder: Path) -> None:
    code, text = _run("fold", "small.py", "--eliminate-dead-channels", "--json", "-o", "x.pt2")
    assert code == 0, text
    result = json.loads(text)
    assert (result["format"], result["path"]) == ("pt2", "x.pt2")
    assert result["channels"]["channels"] == [20, 16]
    assert result["parameters"] == sum(p.numel() for p in _loaded(folder / "x.pt2").parameters())


@pytest.mark.slow
def test_export_from_the_command_line(folder: Path) -> None:
    code, text = _run("export", "small.py", "--eliminate-dead-channels")
    assert code == 0, text
    assert "removed 4 of 20 channels" in text
    stored = {item.name: tuple(item.dims) for item in onnx.load("small.onnx").graph.initializer}
    assert (stored["first.weight"], stored["last.weight"]) == ((12, 3, 3, 3), (4, 12, 3, 3))
    code, text = _run("export", "small.py", "--force")
    assert code == 0
    assert "removed" not in text


def test_compact_is_for_the_models_own_class(folder: Path) -> None:
    code, text = _run("fold", "small.py", "--eliminate-dead-channels", "--compact")
    assert code == 2
    assert "a graph without dead channels is no state dict: it is written as .pt2" in text
    assert [path.name for path in folder.iterdir() if path.suffix != ".py"] in ([], ["__pycache__"])
