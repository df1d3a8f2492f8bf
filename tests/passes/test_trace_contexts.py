"""Regions of a forward under a context that is, at conversion, the ambient one already.

A graph would lose them unseen: they only matter when the model later runs under another context.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.passes.test_trace_settled import applies

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)


class EnableGrad(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad():
            return self.out(self.fc(x))


class NoAutocast(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return self.out(self.fc(x.float()))


@pytest.mark.parametrize("training", [True, False])
def test_a_region_without_autocast_stays_one_when_training_under_autocast(training: bool) -> None:
    original = NoAutocast()
    converted, sparsifier = st3fx.convert(original, X)
    (island,) = sparsifier.plan.islands
    assert any("torch.is_autocast_enabled(cpu) is False" in guard for guard in island.guards)
    assert applies(converted.train(training), X)
    with torch.autocast("cpu", torch.bfloat16):
        expected = original.train(training)(X)
        actual = converted.train(training)(X)
        assert not applies(converted, X)
    assert expected.dtype == torch.float32
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_a_region_with_gradients_stays_one_under_no_grad() -> None:
    original = EnableGrad().eval()
    converted, _ = st3fx.convert(original, X)
    with torch.no_grad():
        assert original(X).requires_grad
        assert converted(X).requires_grad
