"""Models that ``torch.nn.utils.prune`` has put masks on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import st3fx
from st3fx.errors import PlanError

X = torch.randn(3, 8)


def masked(*layers: int, name: str = "weight") -> Any:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    for layer in layers:
        prune.l1_unstructured(model[layer], name, 0.5)
    return model


@pytest.mark.parametrize("layers", [(0,), (0, 2)])
def test_masks_are_to_be_made_permanent_first(layers: tuple[int, ...]) -> None:
    with pytest.raises(
        PlanError, match=r"0.weight \(8, 8\) is pruned by .*prune.remove\(module, 'wei"
    ):
        st3fx.convert(masked(*layers), X)


@pytest.mark.parametrize("options", [{"exclude": "0.*"}, {"include": "2.weight"}])
def test_a_masked_layer_that_is_left_out_stops_nothing(options: Any) -> None:
    model = masked(0)
    converted, sparsifier = st3fx.convert(model, X, **options)
    assert [site.name for site in sparsifier.plan.sites] == ["2.weight"]
    reasons = {item.name: item.reason for item in sparsifier.plan.skipped}
    assert reasons["0.weight_orig"].startswith("masked by torch.nn.utils.prune, and left out")
    assert torch.equal(converted(X), model(X))


def test_once_they_are_permanent_it_converts() -> None:
    model = masked(0)
    prune.remove(model[0], "weight")
    assert len(st3fx.convert(model, X)[1].plan.sites) == 2


def test_a_masked_bias_is_no_matter() -> None:
    model = masked(0, name="bias")
    converted, sparsifier = st3fx.convert(model, X)
    assert len(sparsifier.plan.sites) == 2
    assert torch.equal(converted(X), model(X))
