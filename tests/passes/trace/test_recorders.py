"""Hooks of transformers that record what layers give: idle unless a model above collects.

The module here is in its place, with the names that matter: a collector, and a hook on each layer
that a model installs when it is first asked for the layers' outputs.
"""

from __future__ import annotations

import contextvars
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.modules.hooks import has_other_hooks, is_hooked
from tests.parity import check
from tests.passes.trace.test_settled import applies

NAME = "transformers.utils.output_capturing"
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))

COLLECTOR: contextvars.ContextVar[Any] = contextvars.ContextVar("collector", default=None)


def recorder(module: nn.Module, args: Any, output: Any) -> None:
    collected = COLLECTOR.get()
    if collected is not None and "hidden" in collected:
        collected["hidden"].append(output)


recorder.__module__ = NAME


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(NAME)
    vars(module)["_active_collector"] = COLLECTOR
    monkeypatch.setitem(sys.modules, NAME, module)


class Encoder(nn.Module):
    """Gives what its layers gave, where that is wanted."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))
        self.hidden = hidden
        self.is_installed = False

    def forward(self, x: Tensor) -> Any:
        collected: dict[str, list[Any]] = {"hidden": []} if self.hidden else {}
        if self.hidden and not self.is_installed:
            for layer in self.layers:
                layer.register_forward_hook(recorder)
            self.is_installed = True
        token = COLLECTOR.set(collected)
        try:
            for layer in self.layers:
                x = layer(x)
        finally:
            COLLECTOR.reset(token)
        return x, *collected.get("hidden", ())


def test_a_model_that_records_is_one_graph_from_its_second_call_on() -> None:
    checked = check(Encoder(hidden=True), X, verify=True)
    assert list(checked.islands) == [""]
    model, _ = st3fx.convert(Encoder(hidden=True), X)
    assert not applies(model, X)
    assert len(model(X)) == 3
    assert applies(model, X)
    assert len(model(X)) == 3


def test_hooks_left_by_an_earlier_call_are_idle() -> None:
    original = Encoder(hidden=True)
    original(X)
    original.hidden = False
    assert list(check(original, X).islands) == [""]


def test_hooks_that_come_later_leave_the_graph_in_place() -> None:
    model, _ = st3fx.convert(Encoder(hidden=False), X)
    layers = model.get_submodule("layers")
    for layer in layers.children():
        layer.register_forward_hook(recorder)
    assert applies(model, X)
    model.get_submodule("layers.0").register_forward_hook(lambda *_: None)
    assert not applies(model, X)


def test_a_layer_below_a_model_that_collects_runs_its_hooks() -> None:
    class Branches(Encoder):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x if x.sum() > 0 else -x)

    original = Branches(hidden=True)
    for layer in original.layers.children():
        layer.get_submodule("0").register_forward_hook(recorder)
    original.is_installed = True
    checked = check(original, X)
    assert sorted(checked.islands) == ["layers.0", "layers.1"]
    assert len(checked.model(X)) == 3
    assert applies(checked.model.get_submodule("layers.0"), X)


def test_a_recorded_layer_that_stays_a_call_is_not_lost() -> None:
    class Stubborn(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return self[1](self[0](x if x.sum() > 0 else -x))

    original = Encoder(hidden=True)
    original.layers[1] = Stubborn(nn.Linear(6, 6), nn.Tanh())
    checked = check(original, X)
    assert "" not in checked.islands
    assert "collects what layers.1 gives" in checked.opaque[""]
    assert len(checked.model(X)) == 3


def test_a_recorded_layer_without_sites_is_not_lost() -> None:
    checked = check(Encoder(hidden=True), X, exclude=["layers.0.*"])
    assert "collects what layers.0 gives" in checked.opaque[""]
    assert len(checked.model(X)) == 3


def test_which_hooks_count() -> None:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(recorder)
    assert not has_other_hooks(layer)
    assert not is_hooked(layer)
    token = COLLECTOR.set({"hidden": []})
    assert is_hooked(layer)
    COLLECTOR.reset(token)
    handle = layer.register_forward_pre_hook(lambda *_: None)
    assert has_other_hooks(layer)
    handle.remove()
    assert not has_other_hooks(layer)
