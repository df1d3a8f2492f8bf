"""Whole models: published totals, brute force, and an export of the same."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import torchvision
from torch.nn.modules.conv import _ConvNd

import st3fx
from st3fx.flops import aten
from st3fx.flops.flops_report import Convention
from st3fx.plan.example import Example
from tests.flops.brute import convolutions, prune
from tests.flops.graphs import of_layers, of_resnet, saved

MODELS = (
    "convnext_tiny", "mobilenet_v2", "efficientnet_b0", "googlenet", "mnasnet0_5",
    "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_convolutions_of_models_equal_brute_force(name: str, tmp_path: Path) -> None:
    model = prune(torchvision.models.get_model(name, weights=None))
    x = torch.randn(1, 3, 72, 64)
    report = st3fx.count_flops(model, x)
    rows = {
        row.name: (row.dense_macs, row.sparse_macs)
        for row in report.by_layer.values()
        if row.op.startswith("conv")
    }
    expected, shapes = convolutions(model, x)
    assert rows == expected
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, _ConvNd)}
    used = {weight: layers[weight] for weight in shapes}
    file = st3fx.count_flops(saved(of_layers(used, shapes), tmp_path))
    found = {row.name: (row.dense_macs, row.sparse_macs) for row in file.by_layer.values()}
    assert found == expected
    assert report.unknown == {}
    assert 0.59 < report.weight_sparsity < 0.61


@pytest.mark.slow
def test_resnet50_on_both_levels(tmp_path: Path) -> None:
    model = prune(torchvision.models.resnet50(weights=None))
    x = torch.randn(1, 3, 224, 224)
    path = saved(of_resnet(model, x.shape), tmp_path)
    steps = aten.observe(model, Example.of(x))
    dense = {"exact": 3_948_251_904, "st3": 4_089_184_256, "str": 4_089_284_608}
    for convention in get_args(Convention):
        rows = aten.count(steps, convention)
        file = st3fx.count_flops(path, convention=convention)
        macs = [(row.dense_macs, row.sparse_macs) for row in rows.layers.values()]
        assert [(row.dense_macs, row.sparse_macs) for row in file.by_layer.values()] == macs
        assert file.dense_macs == dense[convention]
        assert file.by_op == rows.ops
        assert (file.unknown, rows.unknown) == ({}, {})
    assert (file.weights, file.parameters) == (25_502_912, 25_557_032 + 2 * 26_560)


@pytest.mark.slow
def test_an_exported_transformer_has_the_same_macs(tmp_path: Path) -> None:
    model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    prune(model)
    x = torch.randn(1, 5, 16)
    st3fx.export_onnx(model, x, tmp_path / "a.onnx", verify=False)
    report, file = st3fx.count_flops(model, x), st3fx.count_flops(tmp_path / "a.onnx")
    assert (file.dense_macs, file.sparse_macs) == (report.dense_macs, report.sparse_macs)
    assert (file.unknown, report.unknown) == ({}, {})
