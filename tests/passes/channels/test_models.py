"""Networks of torchvision with filters emptied at random, and pruned by one threshold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.efficientnet import MBConvConfig

import st3fx
from st3fx.commands.export import eliminate_dead_channels
from tests.passes.channels.nets import emptied, reduced

SINGLE = 1e-6
"""Largest difference over the largest output, in float32."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "share"),
    [
        ("resnet18", 64, 0.6), ("resnet50", 64, 0.8), ("mobilenet_v2", 64, 0.4),
        ("shufflenet_v2_x0_5", 64, 0.45), ("densenet", 64, 0.43), ("vgg11_bn", 32, 0.31),
        ("efficientnet", 64, 0.67), ("regnet_y_400mf", 64, 0.95), ("googlenet", 64, 0.4),
        ("convnext_tiny", 64, 0.7), ("vit", 32, 0.62),
    ],
)  # fmt: skip
def test_exact_and_smaller(name: str, size: int, share: float) -> None:
    _, report = reduced(emptied(_model(name)), torch.randn(2, 3, size, size, dtype=torch.float64))
    assert report.macs[1] < share * report.macs[0]
    assert report.constant > 0


def _model(name: str) -> Any:
    """By torchvision's names; the largest families in sizes that a test can afford."""
    if name == "vit":
        return torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=256
        )
    if name == "densenet":
        return torchvision.models.DenseNet(16, (3, 3, 3), num_init_features=32)
    if name == "efficientnet":
        blocks = [(1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2)]
        return torchvision.models.EfficientNet([MBConvConfig(*b) for b in blocks], dropout=0.2)
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **extra)
    if name == "vgg11_bn":
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.98, 0.99])
def test_pruned_by_one_threshold(sparsity: float) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    x = torch.randn(2, 3, 64, 64)
    converted, sparsifier = st3fx.convert(model, x, st3fx.ST3(sparsity), verify=False)
    sparsifier.set_sparsity(sparsity)
    with torch.no_grad():
        converted.fc.weight.normal_()  # type: ignore[union-attr, operator]
    folded = st3fx.fold(converted).eval()
    graph, report = eliminate_dead_channels(converted, x)
    for batch in (1, 3):
        x = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            wanted, given = folded(x), graph(x)
        assert float((wanted - given).abs().max()) <= SINGLE * float(wanted.abs().max())
    weights = {name: p for name, p in folded.named_parameters() if p.dim() > 1}
    dead = sum(int((p.flatten(1) == 0).all(1).sum()) for p in weights.values())
    assert report.constant >= dead > 0
    assert report.parameters[1] < report.parameters[0]
    names = dict(graph.named_parameters())
    for name, weight in weights.items():
        if name in names:
            assert torch.count_nonzero(names[name]) <= torch.count_nonzero(weight)
