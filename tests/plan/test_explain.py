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
from st3fx.files.reading import build
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


def test_the_model_lists_the_modules_below_it_that_were_not_captured(plan: SparsityPlan) -> None:
    found = explain(plan, ROOT).facts
    assert ("stopped by", explain(plan, "inner").facts[-2][1]) in found
    (stopped,) = (words for what, words in found if what == "not captured")
    assert stopped.startswith("inner (Inner): branches on")


class Tied(nn.Module):
    """A table and its projection, and one weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)
        self.head = nn.Linear(6, 6, bias=False)
        self.head.weight = self.table.weight
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.b(self.a(self.table(ids))))


@pytest.mark.parametrize("include_tied", [True, False])
def test_a_weight_is_known_by_each_of_its_names(include_tied: bool) -> None:
    model, ids = Tied(), torch.tensor([[0, 1, 2]])
    plan = st3fx.convert(model, ids, verify=False, include_tied=include_tied)[1].plan
    again = build(json.loads(json.dumps(plan.to_dict())), SparsityPlan)
    assert again == plan
    for name, other in (("a.weight", "b.weight"), ("b.weight", "a.weight")):
        found = explain(again, name)
        assert (found.name, found.verdict[:7]) == (name, "sparse:")
        assert dict(found.facts)["also called"] == other
    assert explain(again, "b").verdict == f"is part of the graph of {ROOT}"
    table, head = explain(again, "table.weight"), explain(again, "head.weight")
    assert table.verdict.startswith("dense: ")
    if include_tied:
        assert head.verdict.startswith("sparse: ")
        assert table.verdict.endswith("its projection head.weight is sparse")
    else:
        assert head.verdict == table.verdict
        assert dict(head.facts)["also called"] == "table.weight"
        assert ("dense", f"table.weight: {table.verdict[7:]}") in explain(again, "head").facts


def test_a_parameter_that_a_weight_is_computed_from() -> None:
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))
    plan = st3fx.convert(model, X, verify=False)[1].plan
    verdict = explain(plan, "0.parametrizations.weight.original1").verdict
    assert verdict == "sparse: linear multiplies with 0.weight (6x6), computed from it"


def test_an_unknown_name_gives_the_nearest(plan: SparsityPlan) -> None:
    with pytest.raises(
        PlanError, match=r"nothing called 'frist.weight'.*did you mean first.weight"
    ):
        explain(plan, "frist.weight")


def test_a_plan_of_a_bundle_explains_the_same(plan: SparsityPlan) -> None:
    again = build(json.loads(json.dumps(plan.to_dict())), SparsityPlan)
    assert again == plan
    assert explain(again, "inner.fc.weight") == explain(plan, "inner.fc.weight")
    old = plan.to_dict()
    for island in old["islands"]:
        del island["guards"]  # as bundles were written before
    assert build(json.loads(json.dumps(old)), SparsityPlan).sites == plan.sites
    assert json.dumps(explain(plan, "first").to_dict())


def test_vectors_and_idle_weights_are_not_prunable(plan: SparsityPlan) -> None:
    assert plan.numel == 72
    assert plan.prunable == 72 + 36
    (table,) = plan.skipped
    idle = dataclasses.replace(table, name="idle", op="none", shape=(100, 100))
    vector = dataclasses.replace(table, name="vector", shape=(100,))
    more = dataclasses.replace(plan, skipped=(table, idle, vector))
    assert more.prunable == plan.prunable
