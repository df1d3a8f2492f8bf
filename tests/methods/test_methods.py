"""The methods' settings, their table, and ST-3's parts."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from st3fx import ST3, CubicSchedule, Method
from st3fx.errors import MethodError
from st3fx.methods import METHODS, create, from_dict, own_settings, to_dict
from st3fx.plan.sites import Layout, Site

SITE = Site("conv.weight", ("conv.weight",), (64, 3, 7, 7), "conv2d", Layout((0,), 1), ("conv",))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_sparsity_outside_its_range(sparsity: float) -> None:
    with pytest.raises(MethodError, match=r"outside \[0, 1\): give the share"):
        ST3(sparsity)


@pytest.mark.parametrize("normalize", ["std", "", 1])
def test_an_unknown_normalisation(normalize: Any) -> None:
    with pytest.raises(MethodError, match="give None or 'sigma'"):
        ST3(normalize=normalize)


def test_a_method_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ST3().sparsity = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_protocol(name: str) -> None:
    method = create(name)
    assert isinstance(method, Method)
    weight = torch.randn(SITE.shape) * 0.1
    state = method.state(SITE, weight)
    assert list(state) == ["threshold", "mask", *method.learned]
    assert state["mask"].numel() == 0
    learned = [state[key] for key in method.learned]
    inactive = method.op(weight, *state.values(), *method.constants(SITE))
    assert torch.equal(inactive, weight)
    threshold = method.trial(SITE, weight)
    assert learned or threshold.shape == state["threshold"].shape
    trial = method.op(weight, threshold, state["mask"], *learned, *method.constants(SITE))
    assert 0.2 < (trial == 0).float().mean().item() < 0.8


@pytest.mark.parametrize("name", METHODS)
def test_every_method_prunes_groups(name: str) -> None:
    """Also where it knows nothing of them: they are arguments that it does not give itself."""
    method = create(name, granularity="block:3")
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method
    weight = torch.randn(SITE.shape) * 0.1
    threshold, mask = method.trial(SITE, weight), torch.empty(0, dtype=torch.bool)
    learned = [method.state(SITE, weight)[key] for key in method.learned]
    pruned = method.op(weight, threshold, mask, *learned, *method.arguments(SITE)) == 0
    assert 0.1 < pruned.float().mean().item() < 0.9
    blocks = pruned.split(3, dim=1)
    assert all(torch.equal(block.any(1), block.all(1)) for block in blocks)


@pytest.mark.parametrize(
    "method",
    [
        ST3(),
        ST3(0.0),
        ST3(0.95, normalize="sigma", rescale=False),
        ST3(0.5, schedule=CubicSchedule(0.1, 0.9, 2.0)),
    ],
)
def test_a_method_survives_json(method: ST3) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(method)))) == method


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "magic"}, "no method 'magic'"),
        ({}, "no method None"),
        ({"name": "st3", "speed": 3}, "speed"),
        ({"name": "st3", "sparsity": 2.0}, "outside"),
        ({"name": "st3", "schedule": {"begin": 2.0}}, "begin"),
        ({"name": "st3", "schedule": {"start": 0.1}}, "start"),
        ({"name": ["st3"]}, r"no method \['st3'\]"),
        ({"name": "st3", "schedule": [1]}, r"schedule = \[1\] is of a wrong type"),
        ({"name": "st3", "rescale": 1}, "rescale = 1 is of a wrong type"),
        ({"name": "st3", "sparsity": True}, "True"),
        ({"name": "st3", "schedule": {"power": True}}, "power = True is of a wrong type"),
    ],
)
def test_broken_data(data: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        from_dict(data)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        MethodError, match="there are acdc, dst, feather, gmp, granet, lrr, probmask, rigl, st3, "
    ):
        create("st4")


def test_sigma_is_a_name_of_its_own() -> None:
    assert create("st3-sigma") == ST3(normalize="sigma")
    assert create("st3") == ST3()


def test_sigma_scales_by_the_sum_of_the_dimensions() -> None:
    assert ST3().scale(SITE) == 1.0
    assert ST3(normalize="sigma").scale(SITE) == 1 / math.sqrt(81)


def test_the_state_is_an_inactive_scalar_in_full_precision() -> None:
    state = ST3().state(SITE, torch.randn(SITE.shape).half())
    assert list(state) == ["threshold", "mask"]
    assert state["threshold"].shape == ()
    assert state["threshold"].dtype == torch.float32
    assert state["threshold"].item() < 0


def test_the_constants_carry_layout_and_rescaling() -> None:
    site = dataclasses.replace(SITE, layout=Layout((0, 2), 4))
    assert ST3(rescale=False).constants(site) == ([0, 2], 4, False)


def test_the_table_in_the_docs_has_every_method_and_settings_that_it_takes() -> None:
    text = (Path(__file__).parents[2] / "docs" / "explained" / "methods.md").read_text()
    table = text.partition("\n## ")[0]
    _, *rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    assert {row[0].split("`")[1] for row in rows} == set(METHODS)
    for name, cls, _, options in rows:
        key = name.split("`")[1]
        made = create(key)
        assert cls.split("`")[1].partition("(")[0] == type(made).__name__
        for option in re.findall(r"`(\w+=[^`]*)`", options):
            ((setting, value),) = own_settings([option]).items()
            assert getattr(create(key, **{setting: value}), setting) == value
