from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import st3fx
from st3fx.models import MODELS, BasicBlock, mobilenet_v1, wide_resnet

SMALL: dict[str, dict[str, Any]] = {
    # As deep as the real ones, but not as wide: verification runs each a dozen times.
    "wide_resnet": {"width": 2},
    "mobilenet_v1": {"width": 0.25},
}

SIZES = [
    # With 10 classes; from the papers' tables, and exactly from the usual implementations.
    ("resnet20", 269_722, 20),
    ("resnet32", 464_154, 32),
    ("resnet56", 853_018, 56),
    ("vgg19_bn", 20_035_018, 17),
    ("wide_resnet", 36_479_194, 29),
    ("mobilenet_v1", 3_217_226, 28),
    ("lenet_300_100", 266_610, 3),
    ("lstm_rows", 214_282, 5),
]


@pytest.mark.parametrize(("name", "parameters", "sites"), SIZES)
def test_parameters(name: str, parameters: int, sites: int) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.dim() > 1 for p in model.parameters()) == sites


def test_all_are_tested() -> None:
    assert [name for name, *_ in SIZES] == list(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sites"), [(name, sites) for name, _, sites in SIZES])
def test_converts_as_one_island_for_grey_images(name: str, sites: int) -> None:
    model = MODELS[name](num_classes=4, in_channels=1, **SMALL.get(name, {}))
    converted: Any
    converted, _ = st3fx.convert(
        model, torch.randn(2, 1, 28, 28), verify=sum(p.numel() for p in model.parameters()) < 10**7
    )
    plan = converted.st3fx_plan
    assert [island.name for island in plan.islands] == [""]
    assert {site.name for site in plan.sites} == {
        key for key, p in model.named_parameters() if p.dim() > 1
    }
    assert len(plan.sites) == sites
    assert not plan.skipped
    assert converted(torch.randn(3, 1, 28, 28)).shape == (3, 4)


@pytest.mark.parametrize("name", list(MODELS))
def test_takes_cifar_images(name: str) -> None:
    sized = {"image_size": 32} if name in ("lenet_300_100", "lstm_rows") else {}
    model = MODELS[name](num_classes=100, in_channels=3, **sized, **SMALL.get(name, {}))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)


def test_shortcut_has_no_parameters() -> None:
    block = BasicBlock(2, 4, stride=2)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 2, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_lstm_reads_rows_from_the_top() -> None:
    model: Any = MODELS["lstm_rows"](in_channels=2, image_size=5)
    x = torch.randn(1, 2, 4, 5)
    steps = torch.stack([torch.cat([x[0, 0, row], x[0, 1, row]]) for row in range(4)])[None]
    _, (last, _) = model.lstm(steps)
    torch.testing.assert_close(model(x), model.fc(last[-1]), rtol=0, atol=1e-6)


def test_widths_and_strides() -> None:
    assert sum(p.numel() for p in wide_resnet(depth=16, width=1).parameters()) == 175_066
    with pytest.raises(ValueError, match=r"depth is 20; it must be 6 n \+ 4"):
        wide_resnet(depth=20)
    narrow, full = (
        sum(p.numel() for p in mobilenet_v1(width=width).parameters()) for width in (0.5, 1.0)
    )
    assert narrow < 0.3 * full
    features = nn.Sequential(*list(mobilenet_v1(stem_stride=2).children())[:-3])
    assert features(torch.randn(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
