"""A graph outlives an argument that is another number in every call."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError
from st3fx.graphs.graph import Variant

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


class Scaled(nn.Module):
    """Numbers of both kinds that only arithmetic meets, by position, by name and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, share: Any, extra: dict[str, Any], count: Any = 3) -> Any:
        if not isinstance(share, float) or isinstance(count, bool) or hasattr(count, "shape"):
            raise TypeError("no numbers")
        weight = 1 - share * extra["times"]
        return self.b(self.a(x).relu() * weight + share) / count


class Chooses(nn.Module):
    """One number that says where, one that only scales."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, x: Tensor, task: int, scale: float) -> Any:
        return self.heads[task](x) * scale


class Branches(nn.Module):
    """A number that code asks for by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x: Tensor, share: float) -> Any:
        y = self.a(x) * math.sqrt(share)
        return y if share > 0.5 else -y


class Standardised(nn.Linear):
    """A computed weight."""

    def forward(self, x: Tensor, share: float = 1.0) -> Any:
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(x, weight, self.bias)


class Holder(nn.Module):
    """Calls a layer with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Standardised(8, 8)

    def forward(self, x: Tensor, share: float) -> Any:
        return self.layer(x, share)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes of the graphs that have run."""
    seen: list[str] = []
    run = Variant.__call__

    def counted(self: Variant, tensors: Any) -> Any:
        seen.append(self.mode)
        return run(self, tensors)

    monkeypatch.setattr(Variant, "__call__", counted)
    return seen


def convert(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return st3fx.convert(model, [st3fx.Call(*args, **kwargs)], st3fx.ST3(0.5), total_steps=4)[0]


def test_a_number_in_arithmetic_is_free(graphs: list[str]) -> None:
    model = Scaled()
    converted = convert(model, X, 0.25, {"times": 2}, count=5)
    assert len(converted.st3fx_islands) == 1
    copies = [converted, copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))]
    for index, (share, times, count) in enumerate([(0.25, 2, 5), (0.5, 1, 7), (0.0, 0, 1)]):
        for sparse in copies:
            graphs.clear()
            found = sparse(X, share, {"times": times}, count=count)
            assert len(graphs) == 1
            assert torch.equal(found, model(X, share, {"times": times}, count=count)), index
            assert torch.equal(sparse(X, share, {"times": times}, count), found)
    graphs.clear()
    with pytest.raises(TypeError, match="no numbers"):
        converted(X, 1, {"times": 2})  # of another type: its own forward
    converted(X, 0.5, {"times": 2.0})
    converted(X, 0.5, {"times": torch.tensor(2)})
    assert graphs == []


def test_numbers_that_are_the_same_need_not_be() -> None:
    model = Scaled()
    converted = convert(model, X, 1.0, {"times": 3}, count=3)
    assert torch.equal(converted(X, 1.0, {"times": 4}, 5), model(X, 1.0, {"times": 4}, 5))


def test_a_number_that_is_needed_is_a_guard(graphs: list[str]) -> None:
    model = Chooses()
    converted = convert(model, X, 1, 0.5)
    graphs.clear()
    for task, scale, fits in ((1, 0.5, 1), (1, 2.0, 1), (2, 0.5, 0)):
        assert torch.equal(converted(X, task, scale), model(X, task, scale))
        assert sum(map(bool, graphs)) == fits, (task, scale)
        graphs.clear()
    branches = Branches()
    converted = convert(branches, X, 0.25)
    graphs.clear()
    for share, fits in ((0.25, 1), (0.75, 0), (0.3, 0)):
        assert torch.equal(converted(X, share), branches(X, share))
        assert len(graphs) == fits
        graphs.clear()


def test_several_calls_with_other_numbers_are_one_graph() -> None:
    calls = [st3fx.Call(X, share, {"times": 2}) for share in (0.1, 0.2, 0.3)]
    converted: Any = st3fx.convert(Scaled(), calls)[0]
    assert len(converted.st3fx_islands) == 1
    tasks: Any = st3fx.convert(Chooses(), [st3fx.Call(X, task, 0.5) for task in range(3)])[0]
    assert len(tasks.st3fx_islands) == 3
    assert len(tasks.st3fx_plan.sites) == 3


def test_a_layer_that_takes_a_number_as_well_is_no_plain_layer() -> None:
    """Folded it would be a layer that is called with one argument too many."""
    with pytest.raises(PlanError, match="Standardised takes more arguments than a Linear"):
        st3fx.convert(Holder(), (X, 0.5))
