"""Tensors in lists and dicts of a module, with which its code computes as they are."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check
from tests.passes.trace.test_settled import applies

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Tables(nn.Module):
    """Operators and functions of them, their attributes, methods and items."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
        numbers = torch.Generator().manual_seed(1)
        self.anchors: Any = [torch.randn(6, generator=numbers), torch.eye(6)]
        self.table: dict[str, Any] = {"ramp": torch.arange(6.0), "name": "ramp"}

    def forward(self, x: Tensor) -> Any:
        first, second = self.anchors
        ramp = self.table["ramp"]
        y = self.fc(x) * first + x @ second.t() - second[0]
        y = y.to(ramp.dtype).reshape(-1, first.shape[0]) + torch.stack([first, ramp]).sum(0)
        return ramp.to(x.dtype) - self.out(y)


def test_they_are_items_of_the_attribute() -> None:
    checked = check(Tables(), X, verify=True)
    assert list(checked.islands) == [""]
    assert applies(pickle.loads(pickle.dumps(checked.model)), X)
    assert applies(copy.deepcopy(checked.model), X)


def test_one_that_is_replaced_is_read_at_the_next_call() -> None:
    original: Any = Tables()
    model: Any = st3fx.convert(original, X)[0]
    for each in (original, model):
        each.anchors[1] = torch.ones(6, 6)
        each.table["ramp"].add_(1)
    assert applies(model, X)
    assert torch.equal(model(X), original(X))


@pytest.mark.parametrize("other", [torch.ones(6, dtype=torch.float64), torch.ones(1)])
def test_one_of_another_kind_is_not_the_graphs(other: Tensor) -> None:
    model: Any = st3fx.convert(Tables(), X)[0]
    assert applies(model, X)
    model.anchors[0] = other
    assert not applies(model, X)


def test_a_container_with_another_item_is_not_the_graphs() -> None:
    model: Any = st3fx.convert(Tables(), X)[0]
    model.anchors.append(torch.ones(6))
    assert not applies(model, X)


class Changes(Tables):
    """Writes to a tensor in a list while it runs."""

    def forward(self, x: Tensor) -> Any:
        self.anchors[0].add_(1)
        return self.fc(x) * self.anchors[0]


def test_one_that_is_written_to_is_written_to_at_each_call() -> None:
    original: Any = Changes()
    model: Any = st3fx.convert(copy.deepcopy(original), X)[0]
    for _ in range(3):
        assert torch.equal(model(X), original(X))
        assert torch.equal(model.anchors[0], original.anchors[0])


def test_one_that_was_made_in_inference_mode_is_left_alone() -> None:
    original: Any = Tables()
    with torch.inference_mode():
        original.last = [torch.ones(6)]
    expected = original(X)
    model: Any = st3fx.convert(original, X, inplace=True)[0]
    assert torch.equal(model(X), expected)
