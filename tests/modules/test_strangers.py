"""What in a copy means the given model is named, wherever it is hidden; inplace=True is right."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import HookWarning, OptimizerWarning, PlanError, TargetWarning
from st3fx.modules.copying import copied
from st3fx.modules.strangers import strangers

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(6))
GLOBAL: dict[str, nn.Module] = {}


def mlp() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def in_default(model: Any) -> Any:
    return lambda x, layer=model[2]: 2 * nn.Linear.forward(layer, x)


def in_keyword_default(model: Any) -> Any:
    def forward(x: Tensor, *, layer: Any = model[2]) -> Any:
        return 2 * nn.Linear.forward(layer, x)

    return forward


def in_cell(model: Any) -> Any:
    old = model[2].forward
    return lambda x: 2 * old(x)


def in_container(model: Any) -> Any:
    held = {"layers": [model[2]]}
    return lambda x: 2 * nn.Linear.forward(held["layers"][0], x)


def in_weak_reference(model: Any) -> Any:
    held = weakref.ref(model[2])
    return lambda x: 2 * nn.Linear.forward(held(), x)  # type: ignore[arg-type]


def in_partial(model: Any) -> Any:
    return functools.partial(in_cell(model))


def in_wrapped(model: Any) -> Any:
    inner = in_cell(model)
    return functools.wraps(inner)(lambda x: inner(x))  # noqa: PLW0108


def in_global(model: Any) -> Any:
    GLOBAL["layer"] = model[2]
    return lambda x: 2 * nn.Linear.forward(GLOBAL["layer"], x)  # type: ignore[arg-type]


def in_parameter(model: Any) -> Any:
    weight = model[2].weight
    return lambda x: x @ weight.t()


MAKERS: list[Callable[[Any], Any]] = [
    in_default, in_keyword_default, in_cell, in_container, in_weak_reference, in_partial,
    in_wrapped, in_global, in_parameter,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_a_forward_that_means_the_given_model_is_named(make: Any) -> None:
    model = mlp()
    model[2].forward = make(model)
    place = r"'forward' of 2 \(test_strangers.py:\d+\) has a part of the given model"
    with pytest.warns(HookWarning, match=place + ".* give inplace=True, or set it on the result"):
        _, sparsifier = st3fx.convert(model, X, verify=False)
    reasons = {item.name: item.reason for item in sparsifier.plan.skipped}
    assert "does not multiply in the example; 'forward' of 2" in reasons["2.weight"]


@pytest.mark.parametrize("make", MAKERS)
def test_a_hook_that_means_the_given_model_is_named(make: Any) -> None:
    model = mlp()
    function = make(model)
    model[1].register_forward_hook(lambda _, args, out: out + function(args[0]).sum())
    with pytest.warns(HookWarning, match=r"the hook of 1 \(.*register it on the result"):
        st3fx.convert(model, X, verify=False)


@pytest.mark.parametrize("make", [in_default, in_cell])
def test_in_place_it_means_the_converted_model(make: Any) -> None:
    model = mlp()
    model[2].forward = make(model)
    converted: Any
    converted, sparsifier = st3fx.convert(model, X, inplace=True)
    sparsifier.set_sparsity(0.5)
    converted(X).sum().backward()
    assert converted[2].weight.grad is not None
    output = converted(X)
    assert torch.equal(st3fx.fold(converted, inplace=True)(X), output)


def train(model: nn.Module, sparsifier: st3fx.Sparsifier) -> None:
    """Without an optimizer."""
    for _ in range(4):
        model(X).sum().backward()
        sparsifier.step()


def test_the_warning_points_at_the_line_that_calls() -> None:
    model = mlp()
    model[2].forward = in_cell(model)
    with pytest.warns(HookWarning) as converting:
        st3fx.convert(model, X, verify=False)
    converted, _ = st3fx.convert(mlp(), X, verify=False)
    layer = converted.get_submodule("2")
    converted.register_forward_hook(lambda *args: args[2] + 0 * layer.bias.sum())  # type: ignore[operator]
    with pytest.warns(HookWarning) as folding:
        st3fx.fold(converted)
    converted, sparsifier = st3fx.convert(mlp(), X, total_steps=9, verify=False)
    with pytest.warns(TargetWarning) as early:
        st3fx.fold(converted)
    sparsifier.step()
    with pytest.warns(OptimizerWarning) as still:
        train(converted, sparsifier)
    assert {found[0].filename for found in (converting, folding, early, still)} == {__file__}


def test_where_nothing_else_multiplies_the_error_says_why() -> None:
    model = mlp()
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    with (
        pytest.warns(HookWarning, match="'forward' of Sequential"),
        pytest.raises(PlanError, match=r"'forward' of Sequential .*: give inplace=True"),
    ):
        st3fx.convert(model, X)


class Holder:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Any:
        return 2 * nn.Linear.forward(self.layer, x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda m: Holder(m[2]),
        lambda m: functools.partial(nn.Linear.forward, m[2]),
        lambda m: m[2].extra_repr,
        lambda m: [m[0].forward],
        lambda m: len,
        lambda m: lambda x: x,
    ],
)
def test_what_is_copied_is_no_stranger(make: Any) -> None:
    model = mlp()
    model[2].held = make(model)
    model.add_module("cells", nn.LSTM(4, 4))
    assert not strangers(copied(model), model)
