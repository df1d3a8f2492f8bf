"""What a conversion made, from plan and state alone: plans that fit no state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import StateError
from st3fx.passes.convert.stand_in import stand_in


@pytest.mark.parametrize("parameters", [(), ("0.bias.1",), ("elsewhere",)], ids=str)
def test_a_site_is_made_of_parameters_that_are_there(parameters: tuple[str, ...]) -> None:
    method = st3fx.ST3(0.5)
    model, sparsifier = st3fx.convert(
        nn.Sequential(nn.Linear(3, 2)), torch.rand(1, 3), method, total_steps=4
    )
    plan, state = sparsifier.plan, model.state_dict()
    assert torch.equal(stand_in(plan, method, state).state_dict()["0.weight"], state["0.weight"])
    sites = tuple(dataclasses.replace(site, parameters=parameters) for site in plan.sites)
    with pytest.raises(StateError, match=r"0\.weight of parameters that the state does not have"):
        stand_in(dataclasses.replace(plan, sites=sites), method, state)
