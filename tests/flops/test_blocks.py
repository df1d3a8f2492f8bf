"""Blocks of consecutive inputs: against loops over them, in models, files and commands."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import st3fx
from st3fx.cli import main
from st3fx.errors import FlopsError
from st3fx.flops.flops_report import LayerFlops


class Net(nn.Module):
    """Every way in which inputs lie in a weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3)
        self.grouped = nn.Conv2d(12, 20, 3, groups=2)
        self.depthwise = nn.Conv2d(20, 20, 1, groups=20)
        self.up = nn.ConvTranspose2d(20, 12, 2, groups=2)
        self.fc = nn.Linear(12, 11)
        self.proj = nn.Parameter(torch.randn(11, 6))
        for weight in self.parameters():
            if weight.dim() > 1:
                weight.data.mul_(torch.rand(weight.shape) > 0.7)

    def forward(self, x: Tensor) -> Any:
        x = self.up(self.depthwise(self.grouped(self.stem(x))))
        return self.fc(x.mean((2, 3))) @ self.proj


def rows_of_inputs(name: str, weight: Tensor) -> list[list[bool]]:
    """The weights of each output channel at each tap, in the order of the input channels."""
    if name == "proj":
        return [(weight[:, j] != 0).tolist() for j in range(weight.shape[1])]
    if name == "up.weight":  # (inputs, outputs of a group, h, w), in two groups
        inputs = len(weight) // 2
        places = itertools.product(range(2), *map(range, weight.shape[1:]))
        return [[bool(weight[(g * inputs + i, *at)]) for i in range(inputs)] for g, *at in places]
    taps = itertools.product(*map(range, weight.shape[2:]))
    return [
        [bool(weight[(o, i, *tap)]) for i in range(weight.shape[1])]
        for tap in taps
        for o in range(len(weight))
    ]


def require_blocks(row: LayerFlops, weight: Tensor, name: str, size: int) -> None:
    fill, zeros = [0] * (size + 1), 0
    for values in rows_of_inputs(name, weight):
        for start in range(0, len(values), size):
            block = values[start : start + size]
            fill[sum(block)] += 1
            zeros += len(block) - sum(block) if any(block) else 0
    assert (row.block_fill, row.block_zeros) == (tuple(fill), zeros), name
    assert (row.blocks, row.blocks_left) == (sum(fill), sum(fill[1:]))
    assert row.fullest_block == max(k for k, n in enumerate(fill) if n)


@pytest.mark.parametrize("size", [2, 4, 5, 16])
def test_blocks_are_those_of_loops(size: int, tmp_path: Path) -> None:
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    report = st3fx.count_flops(net, x, blocks=size)
    st3fx.export_onnx(net, x, tmp_path / "net.onnx")
    graph = st3fx.count_flops(tmp_path / "net.onnx", blocks=size)
    weights = {name: w for name, w in net.named_parameters() if w.dim() > 1}
    assert set(report.by_layer) == set(weights)
    for counted in (report, graph):
        for name, weight in weights.items():
            require_blocks(counted.by_layer[name], weight.detach(), name, size)
        assert counted.block == size
        assert counted.blocks == sum(row.blocks for row in counted.by_layer.values())
        inside = counted.weight_nonzeros + counted.block_zeros
        assert counted.block_share == inside / counted.weights


def test_a_converted_model_is_counted_in_its_own_blocks() -> None:
    net, x = nn.Sequential(nn.Conv2d(8, 10, 3), nn.Conv2d(10, 8, 1)), torch.randn(1, 8, 6, 6)
    for granularity, fullest in (("block:4", 4), ("nm:2:4", 2), ("nm:1:3", 1)):
        method = st3fx.methods.create("st3", granularity=granularity)
        model, sparsifier = st3fx.convert(net, x, method, total_steps=4)
        sparsifier.set_sparsity(method.target)
        report = st3fx.count_flops(model, x)
        assert report.block == int(granularity[-1])
        assert report.fullest_block == fullest
        assert granularity != "block:4" or report.block_zeros == 0
    for granularity in ("channels", "unstructured"):
        model, _ = st3fx.convert(net, x, st3fx.ST3(0.5, granularity=granularity), total_steps=4)  # type: ignore[arg-type]
        assert st3fx.count_flops(model, x).block is None
        assert st3fx.count_flops(model, x, blocks=4).blocks == 9 * 10 * 2 + 8 * 3


def test_without_blocks_nothing_is_said_of_them() -> None:
    report = st3fx.count_flops(nn.Linear(8, 4), torch.randn(1, 8))
    text = json.dumps(report.to_dict())
    assert "block" not in text
    with pytest.raises(FlopsError, match="blocks of 1: give 2 or more"):
        st3fx.count_flops(nn.Linear(8, 4), torch.randn(1, 8), blocks=1)


MODEL = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(256, 10))
    net[1].weight.data[:, 4:] = 0
    return net

def example_inputs():
    return torch.zeros(1, 3, 8, 8)
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)

    def run(*args: str) -> str:
        done = CliRunner().invoke(main, ["analyze", *args], env={"COLUMNS": "160"})
        assert done.exit_code == 0, done.output
        return done.stdout

    text = run("model.py:make", "--blocks", "4")
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("1.weight"))
    assert row[-7:-3] == ["288", "50.0%", "0.0%", "4"]
    assert "856 of 1,000 blocks of 4 inputs are left (85.6%), 0.0% of the weights in" in text
    data = json.loads(run("model.py:make", "--blocks", "4", "--json"))
    assert (data["block"], data["blocks"], data["blocks_left"]) == (4, 1000, 856)
    assert data["by_layer"][1]["block_fill"] == [144, 0, 0, 0, 144]
    lines = list(csv.DictReader(io.StringIO(run("model.py:make", "--blocks", "4", "--csv", "-"))))
    assert (lines[1]["blocks"], lines[1]["blocks_left"]) == ("288", "144")

    made = ["convert", "model.py:make", "--granularity", "nm:2:4", "-o", "pruned"]
    assert CliRunner().invoke(main, made).exit_code == 0
    data = json.loads(run("pruned", "--sparsity", "0.5", "--json"))
    assert (data["block"], data["fullest_block"]) == (4, 2)
    assert "none has more than 2 nonzeros" in run("pruned", "--sparsity", "0.5")
    refused = CliRunner().invoke(main, ["analyze", "model.py:make", "--blocks", "1"])
    assert refused.exit_code == 2
