"""Forwards that write to their own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Rescales(nn.Module):
    """Halves a weight in its first call in eval mode, as RWKV does for half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rescaled = nn.Linear(4, 4), False

    def forward(self, x: Tensor) -> Any:
        if not self.training and not self.rescaled:
            self.fc.weight.data.div_(2)
            self.rescaled = True
        return self.fc(x)


class Clamps(nn.Module):
    """Keeps a temperature within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(9.0))

    def forward(self, x: Tensor) -> Any:
        self.scale.data.clamp_(max=2)
        return self.fc(x) * self.scale


@pytest.mark.parametrize("inplace", [True, False])
def test_a_weight_that_moves_is_refused_and_stays(inplace: bool) -> None:
    model = Rescales()
    before = model.fc.weight.detach().clone()
    with pytest.raises(PlanError, match=r"Rescales writes to fc.weight while it runs"):
        st3fx.convert(model, X, inplace=inplace)
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_no_site_is_as_it_was_and_moves_as_before(verify: bool) -> None:
    original = Clamps()
    model: Any = st3fx.convert(original, X, verify=verify)[0]
    assert model.scale.item() == original.scale.item() == 9
    assert torch.equal(model(X), original(X))
    assert model.scale.item() == 2
