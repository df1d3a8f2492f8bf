"""RigL, GraNet and AC/DC against trainings in plain torch that follow their papers' rules.

The references are written from the rules in the methods' docstrings alone, with sorts. A training
of each is compared step by step: masks must be the same, weights nearly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.methods.moving import MovingMethod

TOTAL, RATE, MOMENTUM = 60, 0.2, 0.9
SIZES = (12, 20, 16, 5)
GENERATOR = torch.Generator().manual_seed(4)
X, Y = torch.randn(32, SIZES[0], generator=GENERATOR), torch.arange(32) % SIZES[-1]


def net() -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(SIZES):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def converted(method: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    return st3fx.convert(net(), X, method, total_steps=TOTAL, verify=False)


def masks_of(driver: st3fx.Sparsifier) -> list[Tensor]:
    found = []
    for item in driver.run.bound():
        mask = item.tensors("mask")[0]
        found.append(mask.clone() if mask.numel() else torch.ones(item.site.shape).bool())
    return found


def smallest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Flags of the ``count`` smallest."""
    order = torch.where(among, values, math.inf).flatten().argsort()
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view_as(values)


class Reference:
    """Weights, masks and momentum of a network of linear layers, and one step of SGD."""

    def __init__(self, weights: list[Tensor], masks: list[Tensor]) -> None:
        self.weights = [w * m for w, m in zip(weights, masks, strict=True)]
        self.masks = masks
        self.momentum = [torch.zeros_like(w) for w in weights]
        self.gradients: list[Tensor] = []

    def step(self) -> None:
        """With the gradients of what is left; all of them are kept."""
        leaves = [(w * m).requires_grad_() for w, m in zip(self.weights, self.masks, strict=True)]
        y = X
        for index, leaf in enumerate(leaves):
            y = nn.functional.linear(y if index == 0 else y.tanh(), leaf)
        nn.functional.cross_entropy(y, Y).backward()
        self.gradients = [leaf.grad for leaf in leaves]  # type: ignore[misc]
        for index, (gradient, mask) in enumerate(zip(self.gradients, self.masks, strict=True)):
            self.momentum[index] = MOMENTUM * self.momentum[index] + gradient * mask
            self.weights[index] = self.weights[index] - RATE * self.momentum[index]

    def put(self, masks: list[Tensor]) -> None:
        """Other masks: what goes and what comes is 0, and so is its momentum."""
        for index, mask in enumerate(masks):
            stays = self.masks[index] & mask
            self.weights[index] = self.weights[index] * stays
            self.momentum[index] = self.momentum[index] * stays
        self.masks = masks

    def drop_and_grow(self, masks: list[Tensor], fraction: float) -> list[Tensor]:
        """Of each layer the smallest weights go, and those with the largest gradients come."""
        moved = []
        for weight, gradient, mask in zip(self.weights, self.gradients, masks, strict=True):
            count = int(fraction * int(mask.sum()))
            left = mask & ~smallest(weight.abs(), mask, count)
            moved.append(left | smallest(-gradient.abs(), ~left, count))
        return moved

    def prune(self, sparsity: float, *, anew: bool) -> list[Tensor]:
        """The largest of all layers together: those up to the quantile of the magnitudes go."""
        everything = torch.cat([w.abs().flatten() for w in self.weights])
        flags = torch.cat([m.flatten() for m in self.masks])
        count = math.floor((len(everything) - 1) * sparsity) + 1
        if not anew:  # what is pruned stays so
            everything = torch.where(flags, everything, -1.0)
        gone = smallest(everything, torch.ones_like(flags), count)
        parts = (~gone).split([w.numel() for w in self.weights])
        return [part.view_as(w) for part, w in zip(parts, self.weights, strict=True)]


def cosine(fraction: float, step: float, end: float) -> float:
    return fraction / 2 * (1 + math.cos(step * math.pi / end))


def rigl(own: Reference) -> Iterator[float]:
    """ΔT = 4, α = 0.4, T_end = 45 of 60; its sparsity stays."""
    for step in range(1, TOTAL + 1):
        own.step()
        if step % 4 == 0 and step < 45:
            own.put(own.drop_and_grow(own.masks, cosine(0.4, step, 45)))
        yield 0.8


def granet(own: Reference, initial: float) -> Iterator[float]:
    """From step 6 to 42 every 3 steps; r = 0.5 at first."""
    sparsity = initial
    for step in range(1, TOTAL + 1):
        own.step()
        if 6 <= step <= 42 and (step - 6) % 3 == 0:
            sparsity = 0.9 + (initial - 0.9) * (1 - (step - 6) / 36) ** 3
            masks = own.prune(sparsity, anew=False) if sparsity else own.masks
            own.put(own.drop_and_grow(masks, cosine(0.5, step - 6, 36)))
        yield sparsity


def acdc(own: Reference) -> Iterator[float]:
    """Dense until 6, phases of 6 in turn, the last compressed one of the last 15 steps."""
    sparsity = 0.0
    for step in range(1, TOTAL + 1):
        own.step()
        if step in (6, 18, 30, 45):
            sparsity = 0.85
            own.put(own.prune(sparsity, anew=True))
        elif step in (12, 24, 36):
            sparsity = 0.0
            own.masks = [torch.ones_like(mask) for mask in own.masks]
            own.momentum = [torch.zeros_like(value) for value in own.momentum]
        yield sparsity


RAMP = st3fx.CubicSchedule(0.1, 0.7)
RULES: dict[str, tuple[Any, Any]] = {
    "rigl": (st3fx.RigL(0.8, interval=4, fraction=0.4), rigl),
    "granet": (
        st3fx.GraNet(0.9, interval=3, initial=0.5, schedule=RAMP),
        lambda own: granet(own, 0.5),
    ),
    "granet from dense": (
        st3fx.GraNet(0.9, interval=3, initial=0.0, schedule=RAMP),
        lambda own: granet(own, 0.0),
    ),
    "acdc": (st3fx.ACDC(0.85, begin=0.1, phase=0.1, finish=0.25), acdc),
}
rules = pytest.mark.parametrize(("method", "rule"), RULES.values(), ids=RULES)


@rules
def test_a_training_is_that_of_the_rules(method: MovingMethod, rule: Any) -> None:
    model, driver = converted(method)
    names = [site.name for site in driver.plan.sites]
    own = Reference([model.get_parameter(n).detach() for n in names], masks_of(driver))
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    driver.attach(optimizer)
    moves = 0
    before = own.masks
    for step, sparsity in enumerate(rule(own), start=1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        assert driver.scheduled == pytest.approx(sparsity, abs=1e-12), step
        for name, mask, found in zip(names, own.masks, masks_of(driver), strict=True):
            assert torch.equal(mask, found), (step, name)
        left = driver.effective_weights()
        for name, weight, mask in zip(names, own.weights, own.masks, strict=True):
            torch.testing.assert_close(left[name], weight * mask, rtol=1e-4, atol=1e-6)
        moves += any(not torch.equal(*pair) for pair in zip(before, own.masks, strict=True))
        before = own.masks
    assert moves >= 7
    # It ends at the target, compressed, with the masks of its last move.
    assert driver.reached
    numel = driver.plan.numel
    zeros = sum(int((p == 0).sum()) for p in st3fx.fold(model).parameters())
    assert abs(zeros - method.target * numel) <= 1


def test_rigls_layers_keep_their_counts() -> None:
    """Erdős–Rényi–Kernel against bisection over ε; no move changes a layer's count."""
    model, driver = converted(st3fx.RigL(0.8, interval=1))
    shapes = [site.shape for site in driver.plan.sites]
    low, high = 0.0, 100.0
    for _ in range(100):
        scale = (low + high) / 2
        exact = [min(math.prod(s), scale * sum(s)) for s in shapes]
        low, high = (low, scale) if sum(exact) > 0.2 * driver.plan.numel else (scale, high)
    first = [int(mask.sum()) for mask in masks_of(driver)]
    assert all(abs(count - want) <= 1 for count, want in zip(first, exact, strict=True))
    assert len({round(count / math.prod(s), 2) for count, s in zip(first, shapes, strict=True)}) > 1
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    driver.attach(optimizer)
    for _ in range(20):
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert [int(mask.sum()) for mask in masks_of(driver)] == first


def test_granet_prunes_all_layers_together() -> None:
    """A layer of small weights loses most, which no distribution by shapes would give it."""
    model, driver = converted(st3fx.GraNet(0.6, interval=1, initial=0.0))
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(0.01)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    driver.attach(optimizer)
    for _ in range(TOTAL):
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    first, small, last = (mask.double().mean() for mask in masks_of(driver))
    assert small < 0.05
    assert min(first, last) > 0.5
