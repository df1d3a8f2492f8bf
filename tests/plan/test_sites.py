"""Plain data of the plan: derived numbers and the way through JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest

from st3fx.files.reading import build
from st3fx.plan.sites import IslandInfo, Layout, OpaqueModule, Site, SkippedSite, SparsityPlan


def site(
    shape: tuple[int, ...],
    op: str = "conv2d",
    groups: int = 1,
    layout: Layout | None = None,
    **more: Any,
) -> Site:
    name = more.pop("name", "a.weight")
    return Site(name, (name,), shape, op, layout or Layout(), ("a",), groups=groups, **more)


@pytest.mark.parametrize(
    ("example", "inputs", "depthwise"),
    [
        (site((8, 3, 3, 3)), 3, False),
        (site((8, 1, 3, 3), groups=8), 8, True),
        (site((16, 1, 3, 3), groups=8), 8, True),  # with a channel multiplier
        (site((8, 2, 3, 3), groups=4), 8, False),
        (site((1, 1, 3, 3)), 1, False),
        (site((6, 8, 3), "conv_transpose1d", layout=Layout((1,))), 6, False),
        (site((6, 1, 3), "conv_transpose1d", 6, Layout((0, 2), 6)), 6, True),
        (site((10, 7), "linear"), 7, False),
        (site((7, 10), "matmul", layout=Layout((1,))), 7, False),
        (site((4, 7, 10), "matmul", layout=Layout((0, 2))), 7, False),
        (site((4, 7), "matmul", layout=Layout(())), 28, False),
    ],
)
def test_input_channels(example: Site, inputs: int, depthwise: bool) -> None:
    assert example.in_channels == inputs
    assert example.depthwise is depthwise


def test_the_number_of_scalars() -> None:
    assert site((8, 3, 5, 5)).numel == 600
    assert SkippedSite("b", (), "linear", "a scalar").numel == 1
    assert SkippedSite("b", (4, 6), "linear", "tied").numel == 24
    plan = SparsityPlan(sites=(site((2, 3)), site((4, 5), name="b.weight")))
    assert plan.numel == 26


PLAN = SparsityPlan(
    sites=(
        site((8, 2, 3, 3), groups=4, aliases=("b.weight",)),
        site((6, 4, 3), "conv_transpose1d", 2, Layout((0, 2), 2), name="c.weight", computed=True),
    ),
    skipped=(SkippedSite("d.weight", (10, 4), "linear", "also read by embedding"),),
    islands=(IslandInfo("", ("train", "eval"), 12),),
    opaque=(OpaqueModule("e", "Odd", "control flow"),),
    method="st3",
    target=0.9,
    total_parameters=1000,
    verified=True,
)


def test_a_plan_survives_json() -> None:
    assert build(json.loads(json.dumps(PLAN.to_dict())), SparsityPlan) == PLAN


def test_a_plan_survives_pickle() -> None:
    assert pickle.loads(pickle.dumps(PLAN)) == PLAN


def test_a_site_survives_json() -> None:
    for example in PLAN.sites:
        assert build(json.loads(json.dumps(dataclasses.asdict(example))), Site) == example
