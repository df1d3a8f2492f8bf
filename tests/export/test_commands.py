"""``st3fx fold`` and ``st3fx export`` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import st3fx
from st3fx.cli import main
from st3fx.cli.views.outcome import print_export
from st3fx.export.export_result import ExportResult, Parity, Port, Size, Zeros
from tests.models import TINY, write

TIED = """
    import torch
    from torch import nn

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.inner = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("scale", torch.ones(()))

        def forward(self, ids):
            return self.head(self.inner(self.embed(ids)).relu() * self.scale)

    def example_inputs():
        return torch.tensor([[1, 2, 3], [4, 5, 19]])
"""

USER = """
import sys
sys.modules["st3fx"] = None  # importing it fails
import torch
from safetensors.torch import load_file
from tied import Tied, example_inputs

model = Tied()
model.load_state_dict(load_file(sys.argv[1]), strict=True)
torch.save(model.eval()(example_inputs()), "out.pt")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two models in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "tiny.py", TINY)
    write(tmp_path, "tied.py", TIED)
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def _ok(*args: str) -> Result:
    result = _run(*args)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def _trained(folder: Path, sparsity: float = 0.9) -> Path:
    """A bundle as training leaves it, of the tied model."""
    _ok("convert", "tied.py")
    model = st3fx.load_bundle("tied.st3fx")
    st3fx.Sparsifier(model).set_sparsity(sparsity)
    from st3fx.files.bundle import read_bundle

    recipe = read_bundle("tied.st3fx").manifest.recipe
    return st3fx.save_bundle(model, recipe, folder / "trained.st3fx")


@pytest.mark.slow
def test_folded_weights_load_into_the_users_class_without_st3fx(folder: Path) -> None:
    bundle = _trained(folder)
    result = _ok("fold", str(bundle))
    assert result.stdout.rstrip().endswith("of all parameters; wrote trained.safetensors")
    folded = st3fx.fold(st3fx.load_bundle(bundle)).eval()
    state = load_file("trained.safetensors")
    assert state.keys() == folded.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in folded.state_dict().items())
    write(folder, "user.py", USER)
    subprocess.run([sys.executable, "user.py", "trained.safetensors"], check=True)
    output = torch.load("out.pt")
    assert torch.equal(output, folded(torch.tensor([[1, 2, 3], [4, 5, 19]])))
    zeros = int((state["inner.weight"] == 0).sum())
    assert zeros == 57
    # The tied weight is an embedding's too, which is no product.
    assert "57 of 64 weights are zero (89.06%), in 1 tensor with 27.6% of all" in result.stdout


def test_compact_weights(folder: Path) -> None:
    bundle = _trained(folder)
    _ok("fold", str(bundle), "--compact")
    result = json.loads(_ok("fold", str(bundle), "-o", "deep/w.st3w", "--json").stdout)
    assert result["format"] == "compact"
    assert result["sparsity"] == pytest.approx(0.9, abs=0.02)
    assert [size["name"] for size in result["sizes"]] == ["weights of the bundle", "w.st3w"]
    assert result["sizes"][0]["raw"] == 4 * (160 + 64 + 8 + 1)
    assert result["sizes"][1]["raw"] == Path("deep/w.st3w").stat().st_size
    assert Path("trained.st3w").read_bytes() == Path("deep/w.st3w").read_bytes()
    state = st3fx.load_compact("trained.st3w")
    folded = st3fx.fold(st3fx.load_bundle(bundle))
    assert all(torch.equal(value, state[key]) for key, value in folded.state_dict().items())
    assert state["head.weight"] is state["embed.weight"]


@pytest.mark.slow
def test_export_of_a_trained_bundle(folder: Path) -> None:
    bundle = _trained(folder)
    result = _ok("export", str(bundle), "--batch-sizes", "1,3,5")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["input", "ids", "int64", "batch", "x", "3"] in lines
    assert ["output", "output", "float", "batch", "x", "3", "x", "20"] in lines
    rows = [line[:2] for line in lines if line[:1] in (["given"], ["random"])]
    assert rows == [["given", "2"], ["random", "1"], ["random", "3"], ["random", "5"]]
    assert "57 of 224 weights are zero (25.45%), as in the folded model; wrote " in result.stdout
    folded = st3fx.fold(st3fx.load_bundle(bundle)).eval()
    ids = torch.tensor([[7, 7, 7]] * 6)
    (given,) = onnxruntime.InferenceSession("trained.onnx").run(None, {"ids": ids.numpy()})
    np.testing.assert_allclose(given, folded(ids).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_export_of_a_spec_that_is_pruned_now(folder: Path) -> None:
    args = ("export", "tiny.py", "--sparsity", "0.5", "--sparse-initializers", "--json")
    result = json.loads(_ok(*args, "-o", "t.onnx", "--no-verify", "--input", "4x3x9x9").stdout)
    assert result["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert result["batch_norms"] == 1
    assert result["inputs"] == [{"name": "x", "dtype": "FLOAT", "shape": ["batch", 3, 9, 9]}]
    assert result["parity"] == []
    assert result["path"] == "t.onnx"
    assert Path("t.onnx").is_file()


def test_folded_weights_of_a_spec(folder: Path) -> None:
    _ok("fold", "tiny.py", "--sparsity", "0.8")
    again = _ok("fold", "tiny.py", "--weights", "tiny.safetensors", "-o", "again.safetensors")
    assert Path("again.safetensors").read_bytes() == Path("tiny.safetensors").read_bytes()
    assert "102 of 128 weights are zero (79.69%), in 2 tensors with 88.3% of all" in again.stdout
    _ok("fold", "tiny.py", "--allow-dense", "--force", "-o", "again.safetensors")
    assert Path("again.safetensors").read_bytes() != Path("tiny.safetensors").read_bytes()


@pytest.mark.parametrize("command", ["fold", "export"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("tiny.st3fx", ("error: tiny.st3fx is not trained yet, its sparsity is 0: train it (st3fx "
         "train tiny.st3fx), prune it now by --sparsity, or take it as it is by --allow-dense")),
        ("tiny.py", "error: tiny.py has no weight that is zero: prune it now by --sparsity"),
        ("tiny.st3fx --weights tiny.py", "error: tiny.st3fx is a bundle and has its weights"),
        ("tiny.st3fx --sparsity 1", "error: sparsity 1.0 is outside [0, 1)"),
        ("tiny.st3fx -o tiny.py", "error: tiny.py exists: choose another file, or replace it by"),
        ("tiny.st3fx -o tiny.st3fx --force", "error: tiny.st3fx is a folder: name the file"),
        ("nothing.py", "error: no file nothing.py"),
        ("empty", "error: empty is not a bundle: it has no manifest.json"),
        ("norm.py --sparsity 0.5", "error: no example inputs for norm.py: give --input SHAPE"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    folder: Path, command: str, args: str, message: str
) -> None:
    _ok("convert", "tiny.py")
    (folder / "empty").mkdir()
    write(folder, "norm.py", "from torch import nn\ndef build_model(): return nn.Linear(3, 3)\n")
    before = {str(path) for path in folder.rglob("*")}
    result = _run(command, *args.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(message)
    assert {str(path) for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ("--batch-sizes 1,x", 2, "'1,x': give numbers joined by commas, e.g. 1,3"),
        ("--batch-sizes 0", 2, "error: batch sizes (0,): give numbers from 1 on"),
        ("--opset 3", 2, "error: opset 3 cannot be had"),
        ("--tolerance -1", 2, "error: tolerance -1.0: give a number above 0"),
        ("--input 2x3", 2, "error: Tiny refuses the example inputs"),
    ],
)
def test_wrong_options_of_export(folder: Path, args: str, code: int, message: str) -> None:
    result = _run("export", "tiny.py", "--allow-dense", *args.split())
    assert result.exit_code == code
    assert message in result.stderr
    assert not list(folder.glob("*.onnx"))


def test_everything_worth_a_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {f"bn{index}": "w would have other zeros" for index in range(4)}
    print_export(
        ExportResult(
            path=Path("m.onnx"),
            files=(Path("m.onnx"), Path("m.onnx.data")),
            opset=20,
            inputs=(Port("x", "FLOAT", (2, 3)), Port("n", "INT64", ())),
            outputs=(Port("y", "FLOAT", (2,)),),
            dynamic_batch=False,
            baked=("flag=True",),
            batch_norms=1,
            batch_norms_kept=kept,
            zeros=Zeros(3, 100, 90, ("fc.weight",)),
            sparse_initializers=2,
            parity=(),
            tolerance=1e-4,
            sizes=(Size("weights before", 4_000_000, 3_000_000), Size("m.onnx", 500_000, 0)),
            seconds=1.25,
        )
    )
    text = capsys.readouterr().out
    for line in (
        "input    x      float   2x3",
        "input    n      int64   scalar",
        "m.onnx           500 kB     8.00x          0 B",
        "fc.weight has no weight left",
        "folded 1 batch norm into the layers before them",
        "kept batch norm bn0, bn1, bn2 and 1 more: w would have other zeros",
        "2 initializers stored as sparse: smaller on disk, dense again in ONNX Runtime's memory",
        "built in: flag=True",
        "the batch size is fixed",
        "not compared with PyTorch",
        (
            "90 of 100 weights are zero (90.00%), as in the folded model; wrote m.onnx, "
            "m.onnx.data (opset 20) in 1.2 s"
        ),
    ):
        assert line in text, line
    assert "ONNX Runtime against PyTorch" not in text


def test_parity_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    port = Port("x", "FLOAT", ("batch", 3))
    sizes = (Size("weights before", 1, 1), Size("m.onnx", 1, 1))
    rows = (Parity("given", 2, 1.25e-7, 3e-8),)
    print_export(
        ExportResult(Path("m.onnx"), (Path("m.onnx"),), 20, (port,), (port,), True, (), 0, {},
                     Zeros(1, 1, 0), 0, rows, 1e-4, sizes, 1.0)
    )  # fmt: skip
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["given", "2", "1.2e-07", "3e-08"] in lines
    assert ["input", "x", "float", "batch", "x", "3"] in lines


def test_a_zero_among_random_weights_is_no_sparsity(folder: Path) -> None:
    write(folder, "odd.py", """
        import torch
        from torch import nn

        def build_model():
            layer = nn.Linear(40, 40)
            nn.init.zeros_(layer.weight[0, :1])
            return layer

        def example_inputs():
            return torch.randn(2, 40)
    """)  # fmt: skip
    _ok("convert", "odd.py")
    for spec, said in (
        ("odd.st3fx", "is not trained yet"),
        ("odd.py", "has only 1 of 1,600 weights"),
    ):
        result = _run("fold", spec)
        assert (result.exit_code, said in result.stderr) == (2, True), result.output
