"""Graphs with guards on values, under torch.compile: what the model's own code does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import st3fx
from tests.passes.trace.test_data import FULL, GAP, TOKENS, Padding
from tests.passes.trace.test_stores import Keeps
from tests.passes.trace.test_values import OnBatch, OnLength, X


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def converted(kind: type[nn.Module], *args: Tensor) -> nn.Module:
    model, sparsifier = st3fx.convert(kind(), args, st3fx.ST3(0.5))
    assert sparsifier.plan.islands[0].name == ""
    sparsifier.set_sparsity(0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OnBatch, OnLength, Keeps])
def test_guards_on_sizes_compile_without_a_break(kind: type[nn.Module]) -> None:
    model = converted(kind, X)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for x in (X, X[:1], X[:, :2], X):
        for training in (True, False):
            model.train(training)
            assert torch.equal(compiled(x), model(x))
    assert not counters["graph_break"]


def breaks(act: Any) -> list[str]:
    """The kinds of graph breaks that compiling made."""
    counters.clear()
    act()
    return sorted(reason.splitlines()[0] for reason in counters["graph_break"])


@pytest.mark.slow
@torch.no_grad()  # where a graph breaks, dynamo asks activations for gradients, with a warning
def test_a_branch_on_data_breaks_as_it_does_in_the_original() -> None:
    original, model = Padding(), converted(Padding, TOKENS, GAP)
    expected = breaks(lambda: torch.compile(original, backend="eager")(TOKENS, GAP))
    assert expected
    compiled = torch.compile(model, backend="eager")
    assert breaks(lambda: compiled(TOKENS, GAP)) == expected
    for mask in (GAP, FULL, GAP):
        assert torch.equal(compiled(TOKENS, mask), model(TOKENS, mask))


@pytest.mark.slow
def test_with_fullgraph_the_branch_is_named() -> None:
    compiled = torch.compile(converted(Padding, TOKENS, GAP), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"[Dd]ata-dependent branching"):
        compiled(TOKENS, GAP)
