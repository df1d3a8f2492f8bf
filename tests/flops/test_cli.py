"""``st3fx analyze``: tables, JSON, CSV, and one line for what is wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import helper
from rich.console import Console
from safetensors.torch import save_file

import st3fx
from st3fx.cli import main
from st3fx.cli.analyze import CONVENTIONS
from st3fx.cli.views import flops
from st3fx.commands.models import Request
from st3fx.flops.flops_report import Convention
from tests.flops.graphs import graph

MODEL = """
import torch
from torch import nn

print("building")

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def example_inputs():
    return torch.zeros(2, 3, 8, 8)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[:2] = 0
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="only")
    onnx.save(graph([node], {"x": ["n", 3, 8, 8]}, {"w": weight}), tmp_path / "model.onnx")
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["analyze", *args])


def _json(*args: str) -> dict[str, object]:
    result = _run(*args, "--json")
    assert result.exit_code == 0, result.output
    data: dict[str, object] = json.loads(result.stdout)
    return data


def test_a_model_as_json() -> None:
    data = _json("model.py")
    assert data["dense_macs"] == 2 * (108 * 36 + 8)
    assert (data["model"], data["level"], data["inputs"]) == ("model", "aten", [[2, 3, 8, 8]])
    assert _json("model.py", "--batch", "1")["dense_macs"] == 108 * 36 + 8
    assert _json("model.py", "--input", "1x3x10x10")["dense_macs"] == 108 * 64 + 8
    assert _json("model.py", "--convention", "str")["dense_macs"] == 2 * (108 * 36 + 8 + 144)
    assert _json("model.py", "--no-layers")["by_layer"] == []


def test_an_onnx_file_as_json() -> None:
    data = _json("model.onnx")
    assert (data["dense_macs"], data["sparse_macs"]) == (108 * 36, 54 * 36)
    assert (data["model"], data["level"]) == ("model.onnx", "onnx")
    assert _json("model.onnx", "--batch", "3")["sparse_macs"] == 3 * 54 * 36
    assert _json("model.onnx", "--input", "2x3x8x8")["sparse_macs"] == 2 * 54 * 36


def test_a_bundle_and_what_pruning_would_leave() -> None:
    assert CliRunner().invoke(main, ["convert", "model.py"]).exit_code == 0
    dense = _json("model.st3fx")
    assert dense["sparse_macs"] == dense["dense_macs"] == 2 * (108 * 36 + 8)
    pruned = _json("model.st3fx", "--sparsity", "0.75")
    assert pruned["weights_over"] == "sites"
    assert pruned["weight_sparsity"] == 0.75
    assert pruned["sparse_macs"] < dense["sparse_macs"]  # type: ignore[operator]
    assert _json("model.py", "--sparsity", "0.75") == pruned


def test_folded_weights(folder: Path) -> None:
    weights = {
        "conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.ones(4),
        "head.weight": torch.ones(2, 4), "head.bias": torch.ones(2),
    }  # fmt: skip
    save_file(weights, folder / "folded.safetensors")
    data = _json("model.py", "--weights", "folded.safetensors")
    assert (data["sparse_macs"], data["weights_over"]) == (16, "layers")


def test_csv_on_stdout_and_in_a_file(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(_run("model.py", "--csv", "-").stdout)))
    assert [row["name"] for row in rows] == ["conv.weight", "head.weight"]
    result = _run("model.py", "--csv", "layers.csv", "--sort", "name")
    assert result.exit_code == 0
    assert "MACs" in result.stdout
    assert list(csv.DictReader(io.StringIO((folder / "layers.csv").read_text()))) == rows
    assert _run("model.py", "--csv", "layers.csv").exit_code == 2
    assert _run("model.py", "--csv", "layers.csv", "--force").exit_code == 0


@pytest.mark.slow
def test_order_of_the_layers() -> None:
    def names(sort: str) -> list[str]:
        text = _run("torchvision:squeezenet1_1", "--input", "1x3x64x64", "--csv", "-", "--sort",
                    sort).stdout  # fmt: skip
        return [row["name"] for row in csv.DictReader(io.StringIO(text))]

    order, by_name, by_macs = names("order"), names("name"), names("macs")
    assert order[0] == "features.0.weight"
    assert by_name == sorted(order)
    assert by_macs != order
    assert sorted(by_macs) == by_name


def test_the_table_names_everything() -> None:
    result = _run("model.onnx")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    row = next(line for line in lines if " w " in line).split()
    assert row == ["w", "conv2d", "4x3x3x3", "108", "54", "50.0%", "3,888", "1,944", "100.0%",
                   "2", "of", "4"]  # fmt: skip
    assert (
        "model.onnx: one call with 1x3x8x8, as the graph has it, by the convention exact" in lines
    )
    text = " ".join(result.stdout.split())
    assert "MACs 3,888 dense, 1,944 without the zeros (50.0%)" in text
    assert "zeros 50.00% of 108 weights that multiply, 50.00% of all 108 parameters" in text
    assert "dead 2 output channels whose filter is all zero, 0 input channels that no" in text
    assert "speed at most 2.00 times as fast if time goes by MACs" in text
    assert "conv2d" not in _run("model.onnx", "--no-layers").stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from st3fx.commands.analyze import analyze

    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False)
    monkeypatch.setattr(flops, "console", lambda: console)
    request = Request("torchvision:resnet18", inputs=("1x3x64x64",), allow_dense=True)
    report = analyze(request)
    flops.print_report(report, list(report.by_layer.values()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("layer4.0.downsample.0.weight" in line for line in lines)
    row = next(line for line in lines if "fc.weight" in line)
    assert ("512,000" in row, "512 k" in row) == (width == 140, width == 80)


def test_unknown_operators_are_told(folder: Path) -> None:
    node = helper.make_node("DFT", ["x", ""], ["y"])
    onnx.save(graph([node], {"x": [1, 8, 1]}), folder / "fft.onnx")
    result = _run("fft.onnx")
    assert "unknown" in result.stdout
    assert "no rule says what these cost, and they are in no total: DFT (once)" in result.stdout


def test_short_numbers() -> None:
    numbers = {0: "0", 999: "999", 1000: "1.00 k", 63_480: "63.5 k", 4_089_184_256: "4.09 G",
               2_000_000_000_000: "2.00 T"}  # fmt: skip
    assert {number: flops.short(number) for number in numbers} == numbers


BAD = {
    "text.onnx": "text.onnx is not an ONNX file, or is broken",
    "none.onnx": "no file none.onnx",
    "custom.onnx": "custom.onnx: node 'odd' is Mine of the domain my.ops, which is not standard",
    "free.onnx": "input x is 1 x 3 x h x w: give its sizes by --input, e.g. --input 1x3x224x224",
    "away.onnx": "away.onnx has its weights in away.data, which is not beside it: export it again",
    "m.pt2": "m.pt2 is a program of torch.export: in Python, st3fx.count_flops(torch.export.load(",
    "w.safetensors": "w.safetensors holds weights and no graph: st3fx analyze SPEC --weights w.saf",
    "model.onnx --sparsity 0.5": "model.onnx has its weights: leave --weights and --sparsity out",
    "model.onnx --csv no/a.csv": "cannot write no/a.csv: there is no folder no",
    "model.onnx --csv model.py": "model.py exists: choose another file, or replace it by --force",
    "model.py --input 1x4x8x8": "Tiny refuses the example inputs in eval mode: ",
    "torchvision:squeezenet1_1": "no example inputs for torchvision:squeezenet1_1: give --input",
}


@pytest.mark.parametrize("args", BAD)
def test_what_is_wrong_is_one_line(args: str, folder: Path) -> None:
    (folder / "text.onnx").write_text("hello")
    (folder / "w.safetensors").write_bytes(b"")
    custom = helper.make_node("Mine", ["x"], ["y"], name="odd", domain="my.ops")
    onnx.save(graph([custom], {"x": [3, 4]}), folder / "custom.onnx")
    relu = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(graph([relu], {"x": [1, 3, "h", "w"]}), folder / "free.onnx")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    away = graph([product], {"x": [3, 64]}, {"w": np.ones((64, 64), np.float32)})
    onnx.save(away, folder / "away.onnx", save_as_external_data=True, location="away.data")
    (folder / "away.data").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = _run(*args.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"error: {BAD[args]}")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_json_and_csv_do_not_share_stdout() -> None:
    result = _run("model.py", "--json", "--csv", "-")
    assert (result.exit_code, result.stdout) == (2, "")


def test_conventions_are_those_of_the_library() -> None:
    assert get_args(Convention) == CONVENTIONS
    assert st3fx.FlopsReport.__name__ == "FlopsReport"


def test_help_explains_everything() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    for text in ("SPEC", "--convention", "--csv", "--sort", "--batch", "dead channels"):
        assert text in result.stdout
