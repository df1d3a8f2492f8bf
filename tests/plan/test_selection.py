"""Which sites a user wants sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError
from st3fx.plan.sites import Site


class Mobile(nn.Module):
    """Stem, depthwise, pointwise, head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


STEM, DEPTHWISE, POINTWISE, HEAD = (
    "stem.weight", "block.0.weight", "block.1.weight", "head.weight",
)  # fmt: skip
ALL = [STEM, DEPTHWISE, POINTWISE, HEAD]


def wide(site: Site) -> bool:
    return site.shape[0] > 4


def plan_of(**options: Any) -> st3fx.SparsityPlan:
    _, sparsifier = st3fx.convert(Mobile(), torch.randn(2, 3, 8, 8), verify=False, **options)
    return sparsifier.plan


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ALL),
        ({"include": "*"}, ALL),
        ({"include": []}, ALL),
        ({"include": "block.*"}, [DEPTHWISE, POINTWISE]),
        ({"include": ["stem.*", "head.weight"]}, [STEM, HEAD]),
        ({"include": nn.Linear}, [HEAD]),
        ({"include": (nn.Linear, "stem*")}, [STEM, HEAD]),
        ({"include": wide}, [POINTWISE, HEAD]),
        ({"include": lambda site: site.op == "conv2d"}, [STEM, DEPTHWISE, POINTWISE]),
        ({"exclude": "head.*"}, [STEM, DEPTHWISE, POINTWISE]),
        ({"exclude": nn.Conv2d}, [HEAD]),
        ({"exclude": wide}, [STEM, DEPTHWISE]),
        ({"exclude": ["stem.weight", wide]}, [DEPTHWISE]),
        ({"include": nn.Conv2d, "exclude": "*.0.*"}, [STEM, POINTWISE]),
        ({"skip_depthwise": True}, [STEM, POINTWISE, HEAD]),
        ({"skip_first": True}, [DEPTHWISE, POINTWISE, HEAD]),
        ({"skip_last": True}, [STEM, DEPTHWISE, POINTWISE]),
        ({"skip_depthwise": True, "skip_first": True, "skip_last": True}, [POINTWISE]),
    ],
)
def test_choices(options: dict[str, Any], chosen: list[str]) -> None:
    plan = plan_of(**options)
    assert [site.name for site in plan.sites] == chosen
    assert {site.name for site in plan.skipped} == set(ALL) - set(chosen)


@pytest.mark.parametrize(
    ("options", "name", "reason"),
    [
        ({"include": "block.*"}, STEM, "not in include"),
        ({"exclude": "head.*"}, HEAD, "excluded by 'head.*'"),
        ({"exclude": nn.Linear}, HEAD, "excluded by Linear"),
        ({"exclude": wide}, HEAD, "excluded by wide"),
        ({"skip_depthwise": True}, DEPTHWISE, "depthwise (skip_depthwise)"),
        ({"skip_first": True}, STEM, "first site (skip_first)"),
        ({"skip_last": True}, HEAD, "last site (skip_last)"),
    ],
)
def test_reasons(options: dict[str, Any], name: str, reason: str) -> None:
    skipped = {site.name: site.reason for site in plan_of(**options).skipped}
    assert skipped[name] == reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "blok.*"}, "'blok.*' matches no site: the sites' names are like stem.weight"),
        ({"exclude": "fc.weight"}, "'fc.weight' matches no site"),
        ({"exclude": ["head.*", nn.Conv3d]}, "Conv3d matches no site"),
        ({"exclude": "*"}, "no weight to make sparse: all 4 are left out"),
        ({"include": lambda _: False}, "no weight to make sparse"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_of(**options)
    assert message in str(caught.value)


def test_globs_are_case_sensitive() -> None:
    with pytest.raises(PlanError, match="matches no site"):
        plan_of(include="Stem.*")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 6)
        self.down = nn.Linear(6, 6)
        self.down.weight = self.up.weight
        self.other = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.other(self.down(self.up(x)))


def test_a_tied_weight_is_known_by_each_of_its_names() -> None:
    _, sparsifier = st3fx.convert(Tied(), torch.randn(2, 6), exclude="down.*")
    assert [site.name for site in sparsifier.plan.sites] == ["other.weight"]


def test_what_is_left_out_stays_dense() -> None:
    model, sparsifier = st3fx.convert(Mobile(), torch.randn(2, 3, 8, 8), exclude="head.*")
    sparsifier.set_sparsity(0.9)
    folded = st3fx.fold(model)
    assert (folded.get_parameter(HEAD) != 0).all()
    assert (folded.get_parameter(POINTWISE) == 0).any()
    assert not any("st3fx" in key for key in model.get_submodule("head").state_dict())


@pytest.mark.parametrize(
    ("select", "left"),
    [
        (lambda model: model.head, [STEM, DEPTHWISE, POINTWISE]),
        (lambda model: model.block, [STEM, HEAD]),
        (lambda model: [model.stem, model.block[1]], [DEPTHWISE, HEAD]),
        (lambda model: model.block[0].weight, [STEM, POINTWISE, HEAD]),
        (lambda model: [model.head.weight, "stem.*"], [DEPTHWISE, POINTWISE]),
    ],
)
def test_modules_and_parameters_of_the_model_select(select: Any, left: list[str]) -> None:
    model, x = Mobile(), torch.randn(2, 3, 8, 8)
    others = st3fx.convert(model, x, exclude=select(model), verify=False)[1].plan
    assert [site.name for site in others.sites] == left
    chosen = st3fx.convert(model, x, include=select(model), verify=False, inplace=True)[1].plan
    assert {site.name for site in chosen.sites} == set(ALL) - set(left)


def test_what_a_module_leaves_out_says_so() -> None:
    model = Mobile()
    plan = st3fx.convert(model, torch.randn(2, 3, 8, 8), exclude=[model.head, model.stem.weight])[1]
    reasons = {item.name: item.reason for item in plan.plan.skipped}
    assert reasons == {HEAD: "excluded by Linear head", STEM: "excluded by Parameter stem.weight"}


def test_a_module_of_another_model_is_refused() -> None:
    with pytest.raises(PlanError, match="a Linear that include= or exclude= was given is no part"):
        plan_of(exclude=nn.Linear(3, 3))


def test_a_selector_may_name_what_is_dense_anyway() -> None:
    class Embeds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 6), nn.Linear(6, 4)

        def forward(self, tokens: Tensor) -> Any:
            return self.fc(self.table(tokens))

    tokens = torch.tensor([[1, 2]])
    for exclude in ("table.*", nn.Embedding):
        plan = st3fx.convert(Embeds(), tokens, exclude=exclude)[1].plan
        assert [site.name for site in plan.sites] == ["fc.weight"]
    with pytest.raises(
        PlanError, match=r"for example table.weight \(5, 6\): its rows are looked up"
    ):
        st3fx.convert(Embeds(), tokens, include="table.*")
