"""Modules, parameters and arguments of any name."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
NAMES = (
    "class", "None", "lambda", "self", "torch", "getattr", "1", "my head", "a-b", "tête", "头",
    "ﬁ", "fi", "𝐱", "x", 'a"b', "e'f", "c\\d", "g\nh", '") or ("', "{z}", "%s", "#",
)  # fmt: skip


class Named(nn.Module):
    """A layer, a parameter and a buffer of one name each."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8), nn.Module()
        self.inner.add_module(name, nn.Linear(8, 8))
        self.more = nn.Module()
        self.more.register_parameter(name, nn.Parameter(torch.randn(8, 8) / 3))
        self.last = nn.Module()
        self.last.register_buffer(name, torch.ones(8))
        self.norms = nn.Module()
        self.norms.add_module(name, nn.LayerNorm(8))
        self.name = name

    def forward(self, x: Tensor) -> Any:
        x = self.inner.get_submodule(self.name)(self.first(x))
        x = self.norms.get_submodule(self.name)(x)
        return x @ getattr(self.more, self.name) * getattr(self.last, self.name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name(name: str) -> None:
    model = Named(name)
    checked = check(model, X)
    assert set(checked.sites) == {"first.weight", f"inner.{name}.weight", f"more.{name}"}
    assert list(checked.islands) == [""]
    assert checked.skipped == {}
    expected = checked.model.eval()(X)
    for other in (copy.deepcopy(checked.model), pickle.loads(pickle.dumps(checked.model))):
        assert torch.equal(other(X), expected)
    island: Any = checked.model.st3fx_islands[0]  # type: ignore[index]
    assert "def forward" in island.print_readable(print_output=False)
    assert torch.equal(island(X), expected)


def test_all_names_at_once() -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in NAMES:
                self.add_module(name, nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Any:
            for layer in self.children():
                x = torch.tanh(layer(x))
            return x

    checked = check(All(), X)
    assert len(checked.sites) == len(NAMES)


def test_arguments_that_are_called_like_what_the_code_needs() -> None:
    class Arguments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(
            this,  # noqa: N805
            self: Tensor,
            torch: Tensor,
            len: Tensor,  # noqa: A002
            getattr: Tensor,  # noqa: A002
            inf: Tensor,
        ) -> Any:
            if self.shape[0] > 1:
                return this.fc(self).flatten(1) + torch * len - getattr[:, -1:] * inf
            return self

    checked = check(Arguments(), (X, X + 1, X + 2, X + 3, X + 4))
    assert list(checked.islands) == [""]
    (guard,) = checked.plan.islands[0].guards
    assert guard.startswith("self.shape[0] > 1 is True")


def test_names_of_arguments_that_no_code_can_write() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor, **more: Tensor) -> Any:
            return self.norm(x) * more["class"]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.inner = nn.Linear(8, 8), Inner()

        def forward(self, x: Tensor) -> Any:
            return self.inner(self.fc(x), **{"class": x})

    checked = check(Outer(), X)
    assert checked.sites == ["fc.weight"]
    assert "uses a name that no code can write" in checked.opaque[""]


def test_the_parameters_of_a_plan_have_their_own_names() -> None:
    sites = st3fx.convert(Named("class"), X)[1].plan.sites
    assert sites[1].name == "inner.class.weight"
