"""Why a weight or module is what it is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError
from st3fx.plan.explain import ROOT, explain
from st3fx.plan.sites import SparsityPlan

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(5))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return y if y.sum() > 0 else -y


class Net(nn.Module):
    """A guard, a module that stops the trace, a weight that is also read otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.inner = Inner()
        self.table = nn.Embedding(6, 6)

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 4:
            x = x * 2
        y = self.inner(self.first(x))
        return y + x @ self.table.weight + self.table.weight[0]


@pytest.fixture(scope="module")
def plan() -> SparsityPlan:
    return st3fx.convert(Net(), X, verify=False)[1].plan


def facts(plan: SparsityPlan, name: str) -> dict[str, str]:
    return dict(explain(plan, name).facts)


def test_a_sparse_weight_with_its_graph_and_guards(plan: SparsityPlan) -> None:
    assert explain(plan, "first.weight").verdict == (
        "sparse: linear multiplies with it (6x6, 36 parameters)"
    )
    found = facts(plan, "first.weight")
    assert found["multiplied in"] == "first"
    assert found["graph"].startswith(f"of {ROOT} (both; ")
    assert found["holds while"].startswith("x.shape[0] > 4 is False (test_explain.py:")


def test_a_weight_below_a_module_that_stopped_the_trace(plan: SparsityPlan) -> None:
    found = facts(plan, "inner.fc.weight")
    assert found["graph"].startswith("of inner.fc (")
    assert found["not captured"].startswith("inner (Inner): branches on a tensor's data at ")
    assert found["stopped by"].endswith("return y if y.sum() > 0 else -y")


def test_a_dense_weight(plan: SparsityPlan) -> None:
    assert "also read by" in explain(plan, "table.weight").verdict


def test_modules(plan: SparsityPlan) -> None:
    assert explain(plan, "inner").verdict.startswith("keeps its own forward")
    assert explain(plan, "first").verdict == f"is part of the graph of {ROOT}"
    for name in ("", ROOT):
        whole = explain(plan, name)
        assert (whole.name, whole.verdict) == (ROOT, "is captured as a graph")
        assert ("sparse", "first.weight") in whole.facts
        assert any(what == "dense" and "table.weight" in words for what, words in whole.facts)


def test_an_unknown_name_gives_the_nearest(plan: SparsityPlan) -> None:
    with pytest.raises(
        PlanError, match=r"nothing called 'frist.weight'.*did you mean first.weight"
    ):
        explain(plan, "frist.weight")


def test_a_plan_of_a_bundle_explains_the_same(plan: SparsityPlan) -> None:
    again = SparsityPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert explain(again, "inner.fc.weight") == explain(plan, "inner.fc.weight")
    old = plan.to_dict()
    for island in old["islands"]:
        del island["guards"]  # as bundles were written before
    assert SparsityPlan.from_dict(old).sites == plan.sites
    assert json.dumps(explain(plan, "first").to_dict())


def test_vectors_and_idle_weights_are_not_prunable(plan: SparsityPlan) -> None:
    assert plan.numel == 72
    assert plan.prunable == 72 + 36
    (table,) = plan.skipped
    idle = dataclasses.replace(table, name="idle", op="none", shape=(100, 100))
    vector = dataclasses.replace(table, name="vector", shape=(100,))
    more = dataclasses.replace(plan, skipped=(table, idle, vector))
    assert more.prunable == plan.prunable
