"""Totals, bounds, memory, JSON and CSV of a report."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

import st3fx
from st3fx.flops.flops_report import TOTALS, FlopsReport, LayerFlops, OtherFlops, to_csv


def _report(sites: frozenset[str] | None = None) -> FlopsReport:
    rows = (
        LayerFlops("a", "conv2d", (4, 5), 20, 5, 2000, 500, 1, weight_bytes=80,
                   sparse_weight_bytes=23, activation_bytes=7),
        LayerFlops("b", "linear", (3, 10), 30, 30, 300, 300, 2, weight_bytes=120,
                   sparse_weight_bytes=124, activation_bytes=11),
        LayerFlops(":attention", "attention", dense_macs=200, sparse_macs=200, calls=1),
        LayerFlops("e", "embedding", (10, 4), 40, 0, calls=1),
    )  # fmt: skip
    return FlopsReport(
        "Net", "aten", "exact", ((1, 3),), {row.name: row for row in rows},
        {"relu": OtherFlops("relu", 2, 600, 13)}, {"aten::odd": 3}, 150, sites,
    )  # fmt: skip


def test_totals() -> None:
    report = _report()
    assert (report.dense_macs, report.sparse_macs, report.elementwise_flops) == (2500, 1000, 600)
    # An embedding multiplies nothing, so that its zeros are no pruned weights.
    assert (report.weights, report.weight_nonzeros, report.weight_sparsity) == (50, 35, 1 - 0.7)
    assert report.parameter_sparsity == 15 / 150
    assert report.mac_bound == 2.5
    assert report.flop_bound == (5000 + 600) / (2000 + 600)
    assert (report.weight_bytes, report.sparse_weight_bytes) == (200, 23 + 120)
    assert report.activation_bytes == 31
    assert _report(frozenset("a")).weight_sparsity == 0.75


def test_a_report_without_macs() -> None:
    report = FlopsReport("Net", "aten", "exact", ())
    assert (report.mac_bound, report.weight_sparsity, report.parameter_sparsity) == (1, 0, 0)
    dead = FlopsReport("Net", "aten", "exact", (), {"a": LayerFlops("a", "linear", dense_macs=4)})
    assert dead.mac_bound == float("inf")
    assert dead.to_dict()["mac_bound"] is None


def test_json_has_everything() -> None:
    data = json.loads(json.dumps(_report(frozenset("a")).to_dict()))
    assert data["by_layer"][0]["share"] == 0.5
    assert data["by_layer"][0]["sparsity"] == 0.75
    assert data["by_op"] == [{"op": "relu", "calls": 2, "flops": 600, "activation_bytes": 13}]
    assert (data["weights_over"], data["unknown"]) == ("sites", {"aten::odd": 3})
    assert {name: data[name] for name in TOTALS} == {
        name: getattr(_report(frozenset("a")), name) for name in TOTALS
    }
    assert _report().to_dict()["weights_over"] == "layers"


def test_csv_has_a_line_for_each_layer() -> None:
    report = _report()
    lines = list(csv.DictReader(io.StringIO(to_csv(report.by_layer.values(), report.sparse_macs))))
    assert [line["name"] for line in lines] == ["a", "b", ":attention", "e"]
    assert (lines[0]["shape"], lines[0]["sparse_macs"], lines[0]["share"]) == ("4x5", "500", "0.5")
    assert lines[2]["shape"] == ""


def test_memory_traffic_of_a_layer() -> None:
    layer = nn.Linear(10, 6, bias=False)
    layer.weight.data.fill_(1)
    layer.weight.data[:3] = 0
    model = nn.Sequential(layer, nn.ReLU())
    report = st3fx.count_flops(model, torch.zeros(2, 10))
    row = report.by_layer["0.weight"]
    assert row.weight_bytes == 60 * 4
    assert row.sparse_weight_bytes == 8 + 30 * 4  # a bit for each scalar in whole bytes, and values
    assert row.activation_bytes == 4 * (2 * 10 + 2 * 6)
    assert report.by_op["relu"].activation_bytes == 4 * (12 + 12)
    assert report.activation_bytes == row.activation_bytes + 96
    halved = st3fx.count_flops(model.half(), torch.zeros(2, 10).half())
    assert halved.weight_bytes == 60 * 2


def test_all_counts_are_whole_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    for convention in ("exact", "st3", "str"):
        report = st3fx.count_flops(model, torch.randn(1, 3, 8, 8), convention)
        for row in report.by_layer.values():
            assert type(row.dense_macs) is type(row.sparse_macs) is type(row.nonzeros) is int
        assert all(type(row.flops) is int for row in report.by_op.values())


@pytest.mark.parametrize("size", [64, 4096])
def test_the_size_of_the_input_costs_nothing(size: int) -> None:
    model = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.empty(1, 64, 1, 1).expand(1024, 64, size, size)
    macs = st3fx.count_flops(model, x, "st3").dense_macs
    assert macs == 1024 * size**2 * 64 * 64 * 9
