"""A trial run leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from st3fx.modules.state import Attributes, preserved, preserved_rng, rng_states, seed_everything


class Stateful(nn.Module):
    """Holds one of each container, and modules below."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.scale = 1.0
        self.log: list[Any] = [1]
        self.cache: dict[str, Any] = {"a": 1}
        self.seen = {1}
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.norm(x))


CHANGES = {
    "a value": lambda m: setattr(m, "scale", 2.0),
    "a new attribute": lambda m: setattr(m, "last", torch.zeros(2)),
    "a removed attribute": lambda m: delattr(m, "scale"),
    "a list": lambda m: m.log.append(2),
    "a list's item": lambda m: m.log.__setitem__(0, 5),
    "another list": lambda m: setattr(m, "log", []),
    "a dict": lambda m: m.cache.update(b=2),
    "a dict's item": lambda m: m.cache.update(a=2),
    "a set": lambda m: m.seen.add(2),
    "a flag below": lambda m: m.inner[1].eval(),
    "a child": lambda m: setattr(m, "norm", nn.Identity()),
    "a child below": lambda m: m.inner.append(nn.ReLU()),
    "a parameter": lambda m: setattr(m.inner[0], "weight", nn.Parameter(torch.zeros(4, 4))),
    "a buffer": lambda m: m.register_buffer("extra", torch.zeros(1)),
    "a hook": lambda m: m.inner.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_and_taken_back(change: Any) -> None:
    model = Stateful()
    objects = {n: {k: id(v) for k, v in m.__dict__.items()} for n, m in model.named_modules()}
    keys = list(model.state_dict())
    attributes = Attributes(model)
    assert attributes.changes() == []
    change(model)
    assert attributes.changes()
    attributes.restore()
    assert attributes.changes() == []
    assert list(model.state_dict()) == keys
    assert (model.scale, model.log, model.cache, model.seen) == (1.0, [1], {"a": 1}, {1})
    for name, module in model.named_modules():
        assert {k: id(v) for k, v in module.__dict__.items()} == objects[name]


def test_changes_are_full_names_below_a_module() -> None:
    model = Stateful()
    attributes = Attributes(model)
    setattr(model.inner[1], "p", 0.1)  # noqa: B010 (its type is that of any module)
    model.scale = 3.0
    assert set(attributes.changes()) == {"inner.1.p", "scale"}
    assert attributes.changes(below="inner") == ["inner.1.p"]
    attributes.restore(below="inner")
    assert model.inner[1].p == 0.5
    assert model.scale == 3.0


def test_below_goes_by_whole_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})
    attributes = Attributes(model)
    setattr(model["ab"], "in_features", 7)  # noqa: B010
    assert attributes.changes(below="a") == []


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_generators_are_set_back() -> None:
    before = rng_states()
    with preserved_rng():
        first = draw()
        assert rng_states() != before
    assert rng_states() == before
    assert draw() == first


def test_generators_are_set_back_after_an_error() -> None:
    before = rng_states()
    with pytest.raises(ZeroDivisionError), preserved_rng():
        draw()[0] / 0
    assert rng_states() == before


def test_a_seed_fixes_every_generator() -> None:
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_trial_run_leaves_buffers_flags_and_generators() -> None:
    model = Stateful().eval()
    model.norm.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = {name: module.training for name, module in model.named_modules()}
    before = rng_states()
    with preserved(model):
        model.train()(torch.randn(5, 4))
        model.get_buffer("count").add_(3)
        model.log.append(9)
        assert not torch.equal(model.get_buffer("norm.running_mean"), buffers["norm.running_mean"])
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert model.log == [1]
    assert rng_states() == before


class Frozen(dict):  # type: ignore[type-arg]
    """A configuration that refuses to be changed, as diffusers' models have one."""

    def clear(self) -> None:
        raise TypeError("frozen")

    update = clear  # type: ignore[assignment]


def test_what_did_not_change_is_not_written() -> None:
    model = nn.Linear(2, 2)
    model.config = Frozen(width=2)  # type: ignore[assignment]
    with preserved(model):
        model.__dict__["other"] = 1
    assert model.config == {"width": 2}
    assert not hasattr(model, "other")
