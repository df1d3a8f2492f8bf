"""What the root of a converted model carries, and who knows its names."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn

import st3fx
from st3fx.errors import StateError
from st3fx.modules.marks import (
    CONVERSION,
    PREFIX,
    conversion_of,
    is_state,
    parameter_of,
    state_name,
)
from tests.test_house import modules

ROOT = Path(__file__).parents[2]

SPELLS_THE_PREFIX = {
    "st3fx.modules.marks",
    "st3fx.modules.effective",  # attributes of a tensor
    "st3fx.whose",  # names of Python modules
    "st3fx.sparsity.mask_bits",  # a message
    "st3fx.passes.onnx.pipeline",  # metadata of an exported graph
}
"""Modules, besides the functions of the compiled library."""

X = torch.randn(3, 8)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def traced() -> nn.Module:
    return fx.symbolic_trace(net())


def spelt(source: str) -> Iterator[str]:
    """Names with the prefix in strings that are no documentation, and behind dots."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if PREFIX in node.value and id(node) not in prose:
                yield node.value
        elif isinstance(node, ast.Attribute) and node.attr.startswith(PREFIX):
            yield node.attr


def test_nobody_else_spells_the_prefix() -> None:
    sources = {name: text for name, text in modules(ROOT).items() if "st3fx.native" not in name}
    assert {name for name, text in sources.items() if any(spelt(text))} == SPELLS_THE_PREFIX


def test_prose_may_spell_it() -> None:
    assert not list(spelt('"""See ``st3fx_plan``."""'))
    assert list(spelt('getattr(model, "st3fx_plan")')) == ["st3fx_plan"]
    assert list(spelt("model.st3fx_plan")) == ["st3fx_plan"]


@pytest.mark.parametrize("make", [net, traced])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_root_alone_has_public_attributes(make: Any, again: Any) -> None:
    model, sparsifier = st3fx.convert(make(), X, total_steps=4)
    twin = again(model)
    roots: list[Any] = [model, twin]
    for root in roots:
        assert root.st3fx_plan == sparsifier.plan
        assert len(root.st3fx_islands) == 1
        for module in [*root.modules()][1:]:
            with pytest.raises(AttributeError, match="no attribute 'st3fx_plan'"):
                _ = module.st3fx_plan
            with pytest.raises(StateError, match="is not a converted model"):
                conversion_of(module)
    assert twin.st3fx_islands is not model.st3fx_islands
    assert not hasattr(st3fx.fold(model), "st3fx_plan")


@pytest.mark.parametrize("make", [net, traced])
def test_a_pickle_of_an_older_version_has_loose_attributes(make: Any) -> None:
    model, sparsifier = st3fx.convert(make(), X, st3fx.ST3(sparsity=0.5), total_steps=4)
    sparsifier.step()
    expected, plan = model(X), sparsifier.plan
    reduced: Any = model.__reduce_ex__(2)
    function, arguments, state, *_ = reduced
    fields = vars(state[CONVERSION])
    loose = {PREFIX + name: value for name, value in fields.items() if name != "unloaded"}
    older = {name: value for name, value in state.items() if name != CONVERSION} | loose
    function, arguments, older = pickle.loads(pickle.dumps((function, arguments, older)))
    again = function(*arguments)
    again.__setstate__(older)
    assert conversion_of(again).plan == plan
    assert [name for name in again.__dict__ if is_state(name)].count(CONVERSION) == 1
    assert not {f"{PREFIX}plan", f"{PREFIX}run"} & again.__dict__.keys()
    assert torch.equal(again(X), expected)
    driver = st3fx.Sparsifier(again)
    assert driver.steps == 1
    driver.step()


def test_a_shallow_copy_changes_its_own_plan() -> None:
    model, _ = st3fx.convert(net(), X, total_steps=4)
    twin = copy.copy(model)
    st3fx.Sparsifier(twin).drop("2.weight")
    assert [site.name for site in conversion_of(twin).plan.sites] == ["0.weight"]
    assert [site.name for site in conversion_of(model).plan.sites] == ["0.weight", "2.weight"]


def test_names_lead_back_to_the_parameter() -> None:
    for parameter in ("weight", "in_proj_weight"):
        assert parameter_of(state_name(parameter, "mask")) == parameter
    assert is_state("layer.st3fx_weight_mask")
    assert not is_state("layer.weight")
