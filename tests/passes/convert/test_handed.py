"""A forward that reads weights by ``parameters()`` or a state dict computes one thing only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import st3fx
from st3fx.errors import ForwardError, VerificationError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(8))


class Momentum(nn.Module):
    """A teacher that follows in the forward, as in MoCo."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.t = copy.deepcopy(self.a).requires_grad_(False)

    def update(self) -> None:
        with torch.no_grad():
            for theirs, ours in zip(self.t.parameters(), self.a.parameters(), strict=True):
                theirs.mul_(0.5).add_(ours, alpha=0.5)

    def forward(self, x: Tensor, tag: Any = None) -> Any:
        self.update()
        return self.a(x) + self.t(x)


class ByName(Momentum):
    def update(self) -> None:
        with torch.no_grad():
            self.t.weight.mul_(0.5).add_(self.a.get_parameter("weight"), alpha=0.5)


class ByStateDict(Momentum):
    def update(self) -> None:
        ours = self.a.state_dict()
        theirs = self.t.state_dict().items()
        self.t.load_state_dict({k: 0.5 * v + 0.5 * ours[k] for k, v in theirs})


class Loaded(Momentum):
    def update(self) -> None:
        self.t.load_state_dict(self.a.state_dict())


class Branching(Momentum):
    """No graph: a branch on data."""

    def forward(self, x: Tensor, tag: Any = None) -> Any:
        return super().forward(x) if x.sum() > -1e9 else x


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)

    def forward(self, x: Tensor, tag: Any = None) -> Any:
        return F.linear(x, dict(self.named_parameters())["a.weight"])


class Held(Product):
    def forward(self, x: Tensor, tag: Any = None) -> Any:
        return F.linear(x, self.a._parameters["weight"])  # type: ignore[arg-type]


class Asking(Product):
    """Asks for a device and a type, as many do, and computes with no values."""

    def forward(self, x: Tensor, tag: Any = None) -> Any:
        first = next(self.parameters())
        return self.a(x.to(first.device, first.dtype)) + first.new_zeros(1)


def sparse(model: nn.Module) -> Any:
    model, sparsifier = st3fx.convert(model, X, total_steps=9)
    sparsifier.set_sparsity(0.5)
    return model


@pytest.mark.parametrize("make", [Momentum, ByName, Product, Held])
def test_where_only_the_graph_has_the_effective_weight_another_call_is_refused(make: Any) -> None:
    model = sparse(make())
    with pytest.raises(ForwardError, match=r"a.weight is read by parameters\(\) or the like in"):
        model(X, tag=object())


def test_a_global_hook_does_not_change_what_is_computed() -> None:
    model, other = sparse(Momentum()), None
    other = copy.deepcopy(model)
    expected = model(X)
    hook = register_module_forward_hook(lambda *_: None)
    try:
        assert torch.equal(other(X), expected)
    finally:
        hook.remove()
    assert torch.equal(other.t.weight, model.t.weight)


@pytest.mark.parametrize("make", [ByStateDict, Loaded, Branching])
def test_without_a_graph_it_is_refused_by_name(make: Any) -> None:
    advice = r"computes with a.weight, got by parameters\(\) or a state dict.* or exclude these"
    with pytest.raises(VerificationError, match=advice):
        sparse(make())


def test_who_asks_for_no_values_needs_no_graph() -> None:
    model = sparse(Asking())
    assert torch.equal(model(X, tag=object()), model(X))
