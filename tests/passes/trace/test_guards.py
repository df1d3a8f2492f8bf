"""A graph runs only while everything that its trace read is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from st3fx.errors import DriftWarning
from tests.parity import check, require_same, run, step

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    """Reads settings of its own and of its layers."""

    scale: float
    sizes: list[int]
    activation: Callable[[Tensor], Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6, 5)
        self.scale, self.sizes, self.activation = 2.0, [2, 3], torch.relu
        self.rate = 0.2
        self.twice = False

    def forward(self, x: Tensor) -> Any:
        y = self.activation(self.conv(x)) * self.scale
        y = F.dropout(y, self.rate, self.training)
        y = self.drop(y).mean(self.sizes)
        return self.fc(y + y if self.twice else y)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda m: setattr(m, "scale", 3.0),
    "a flag": lambda m: setattr(m, "twice", True),
    "a list's items": lambda m: m.sizes.__setitem__(slice(0, 2), [-1, -2]),
    "a function": lambda m: setattr(m, "activation", torch.tanh),
    "a rate": lambda m: setattr(m, "rate", 0.6),
    "a layer's rate": lambda m: setattr(m.drop, "p", 0.7),
    "a stride": lambda m: setattr(m.conv, "stride", (2, 2)),
    "a padding": lambda m: setattr(m.conv, "padding", (2, 2)),
    "a frozen layer": lambda m: m.conv.weight.requires_grad_(False),
    "a mode of one layer": lambda m: setattr(m.drop, "training", not m.drop.training),
    "a bias taken away": lambda m: setattr(m.conv, "bias", None),
    "a hook below": lambda m: m.conv.register_forward_hook(lambda _, args, out: out * 2),
    "a pre-hook below": lambda m: m.fc.register_forward_pre_hook(lambda _, args: (args[0] + 1,)),
    "a hook on a leaf": lambda m: m.drop.register_forward_hook(lambda _, args, out: out * 2),
    "a hook on the root": lambda m: m.register_forward_hook(lambda _, args, out: out * 2),
    "a backward hook": lambda m: m.fc.register_full_backward_hook(lambda _, g, out: (g[0] * 2,)),
    "a leaf replaced": lambda m: setattr(m, "drop", nn.Identity()),
}


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_after_the_conversion_counts(change: Any, sparsity: float) -> None:
    original = Net()
    converted, sparsifier = st3fx.convert(original, X)
    assert [island.name for island in sparsifier.plan.islands] == [""]
    sparsifier.set_sparsity(sparsity)
    original.load_state_dict(sparsifier.effective_weights(), strict=False)
    unchanged = run(original, (X,), {}, training=False, seed=0)
    for training in (True, False):
        before, now = original.train(training), converted.train(training)
        change(before)
        change(now)
    for seed in (0, 1):
        require_same(step(original, (X,), {}, seed), step(converted, (X,), {}, seed), "training")
    expected = run(original, (X,), {}, training=False, seed=0)
    require_same(expected, run(converted, (X,), {}, training=False, seed=0), "eval")
    require_same(expected, run(st3fx.fold(converted), (X,), {}, training=False, seed=0), "folded")
    assert unchanged.requires_grad


def test_the_same_value_set_again_keeps_the_graph() -> None:
    converted, _ = st3fx.convert(Net(), X)
    converted.scale, converted.sizes = 2.0, [2, 3]  # type: ignore[assignment]
    variant = converted.__dict__["st3fx_forward"].variants[0]
    assert variant.tensors((X,), {}) is not None
    converted.scale = 2.5  # type: ignore[assignment]
    assert variant.tensors((X,), {}) is None


def test_hooks_from_before_the_conversion_stay() -> None:
    original = Net()
    calls: list[str] = []
    original.register_forward_hook(lambda *_: calls.append("root"))
    original.conv.register_forward_hook(lambda _, args, out: out * 2)
    original.fc.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    original.drop.register_forward_hook(lambda *_: calls.append("drop"))
    checked = check(original, X)
    assert checked.sites == ["conv.weight", "fc.weight"]
    calls.clear()
    checked.model(X)
    assert calls == ["drop", "root"]
    calls.clear()
    checked.folded(X)
    assert calls == ["drop", "root"]


def test_a_removed_hook_is_gone() -> None:
    original = Net()
    original.eval()
    handles = [original.conv.register_forward_hook(lambda _, args, out: out * 2)]
    converted, _ = st3fx.convert(original, X)
    for module in (original, converted):
        for hooks in (m._forward_hooks for m in module.modules()):
            hooks.clear()
    assert torch.equal(converted.eval()(X), original(X))
    assert handles


def test_a_global_hook_sees_every_module() -> None:
    converted, _ = st3fx.convert(Net(), X)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    try:
        converted.eval()(X)
    finally:
        handle.remove()
    assert seen == ["Conv2d", "Dropout", "Linear", "Net"]


def test_a_replaced_layer_is_used_as_it_is() -> None:
    """A new head after the conversion, as one would for fine-tuning: dense, and trained."""
    original = Net()
    converted, sparsifier = st3fx.convert(original, X)
    sparsifier.set_sparsity(0.5)
    original.load_state_dict(sparsifier.effective_weights(), strict=False)
    head = nn.Linear(6, 9)
    original.fc, converted.fc = head, copy.deepcopy(head)
    with pytest.warns(DriftWarning, match=r"fc.weight was replaced .*fc is another Linear"):
        converted(X)
    require_same(step(original, (X,), {}, 0), step(converted, (X,), {}, 0), "training")
    output = converted.eval()(X)
    assert output.shape == (3, 9)
    assert torch.equal(output, original.eval()(X))


def wrapped(forward: Any) -> Any:
    return lambda x: forward(x) * 3


def test_a_wrapped_forward_is_called() -> None:
    """As tools for offloading and profiling wrap the forward of each layer."""
    original = Net()
    converted, sparsifier = st3fx.convert(original, X)
    sparsifier.set_sparsity(0.5)
    original.load_state_dict(sparsifier.effective_weights(), strict=False)
    for module in (original.fc, converted.get_submodule("fc")):
        module.__dict__["forward"] = wrapped(module.forward)
    require_same(step(original, (X,), {}, 0), step(converted, (X,), {}, 0), "training")


class Collector:
    """Stands in a module of a library, and cannot be copied."""

    def __init__(self) -> None:
        self.variable: ContextVar[Any] = ContextVar("collector", default=None)
        self.on = False


COLLECTOR = Collector()


class AsksCollector(nn.Linear):
    """Asks an object that is no part of the model, as transformers' models do."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.relu() if COLLECTOR.on else y


def test_a_copy_reads_what_is_no_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    original = nn.Sequential(AsksCollector(8, 8))
    converted, _ = st3fx.convert(original, x, verify=False)
    twin = copy.deepcopy(converted)
    assert torch.equal(twin.eval()(x), original.eval()(x))
    monkeypatch.setattr(COLLECTOR, "on", True)
    assert torch.equal(twin(x), original(x))
    assert torch.equal(st3fx.fold(converted).eval()(x), original(x))
