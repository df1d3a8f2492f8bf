"""Train and eval graphs: whatever the code reads of the mode, and whoever sets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import check, require_same

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))


class Reads(nn.Module):
    """The mode is read in the code, and by a layer that is not traced through."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.auxiliary = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x).mean((2, 3))
        if self.training:
            return self.head(F.dropout(y, 0.5, self.training)), self.auxiliary(y)
        return self.head(y)


def test_each_mode_that_the_code_reads_gets_its_graph() -> None:
    checked = check(Reads(), X)
    assert checked.islands == {"": ("train", "eval")}
    assert checked.sites == ["body.0.weight", "head.weight", "auxiliary.weight"]


def test_modes_that_no_code_reads_share_a_graph() -> None:
    assert check(nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)), X).islands == {"": ("both",)}


@pytest.mark.parametrize("training", [True, False])
def test_partly_frozen_modes_are_the_users(training: bool) -> None:
    original = Reads().train(training)
    original.body[1].train(not training)
    converted, _ = st3fx.convert(original, X)
    flags = [module.training for module in original.modules()]
    assert [module.training for module in converted.modules()] == flags
    torch.manual_seed(3)
    expected = original(X)
    torch.manual_seed(3)
    require_same(expected, converted(X), "output")
    require_same(dict(original.named_buffers()), {
        name: buffer for name, buffer in converted.named_buffers() if "st3fx" not in name
    }, "buffers")  # fmt: skip


class StaysFrozen(Reads):
    """Overrides ``train``, as detectors do for their batch norms."""

    def train(self, mode: bool = True) -> StaysFrozen:
        super().train(mode)
        self.body[1].eval()
        return self


class FrozenPart(nn.Module):
    """Keeps a part with a weight, and code that reads its mode, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.out = nn.Linear(5, 5)

    def train(self, mode: bool = True) -> FrozenPart:
        super().train(mode)
        self.part.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        return F.dropout(self.out(self.part(x)), 0.5, self.training)


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Any:
        return F.dropout(self.conv(x), 0.5, self.training).mean((2, 3))


def test_a_part_that_stays_in_eval_mode_is_traced_in_it() -> None:
    checked = check(FrozenPart(), X)
    assert checked.islands == {"": ("train", "eval")}
    islands: Any = checked.model.st3fx_islands
    assert [graph.code.count("dropout(") for graph in islands] == [2, 2]
    assert islands[0].code.count("training = True") == 1
    checked.model.train()
    variants = checked.model.__dict__["st3fx_forward"].variants
    assert variants[0].tensors((X,), {}) is not None


def test_an_overridden_train_is_respected() -> None:
    checked = check(StaysFrozen(), X)
    assert checked.islands == {"": ("train", "eval")}
    assert not checked.model.train().get_submodule("body.1").training
