"""A target for each layer, from what it costs to prune each alone.

The rises of the loss are taken to add up. Then the targets ``s_l`` that cost least at a sparsity
``S`` over all weights solve

    minimise ``Σ R_l(s_l)``  subject to  ``Σ n_l·s_l = S·Σ n_l``

where ``R_l`` is the measured rise, linear between the sparsities that were tried, and ``n_l`` the
weights of a layer (or their multiplications, or the time that they take). At the minimum all layers
have the same marginal cost, ``R_l'(s_l) / n_l``: where one could give up a weight for less than
another, the two would change places. As in the allocation of bits to quantizers (Y. Shoham and
A. Gersho, Efficient bit allocation for an arbitrary set of quantizers, IEEE Transactions on
Acoustics, Speech, and Signal Processing 36(9), 1988), only the lower convex hull of a curve can be
such a minimum, and taking its pieces by rising slope until the budget is met is exact.

A curve begins at 0 sparsity. Of a layer that has zeros already it has a point at these, where the
loss does not rise. It ends at the highest sparsity that was tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from st3fx.errors import MethodError
from st3fx.methods.base import check_sparsity
from st3fx.training.sensitivity import LayerSensitivity, SensitivityResult

DIGITS = 5
"""Decimals of a target in a file."""

Curve = tuple[tuple[float, float], ...]
"""(sparsity, rise of the loss), by rising sparsity."""


@dataclass(frozen=True)
class Budgets:
    """Targets by layer.

    Attributes:
        targets: Full name of each weight -> its sparsity.
        sparsity: What these amount to, over all weights.
        macs: The same over multiplications.
        rise: By how much the loss is expected to rise, if rises add up.
        uniform: The same with one target for all layers, as far as they were measured.
    """

    targets: Mapping[str, float]
    sparsity: float
    macs: float
    rise: float
    uniform: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "targets": dict(self.targets), "sparsity": self.sparsity, "macs_saved": self.macs,
            "loss_rise": self.rise, "loss_rise_uniform": self.uniform,
        }  # fmt: skip

    def to_toml(self, about: Sequence[str] = ()) -> str:
        """Settings that ``st3fx train --config`` and ``--sparsity-of`` read.

        Args:
            about: Lines at the top, of what they meet.
        """
        lines = [
            "# Written by st3fx sensitivity: targets of the layers that together raise the loss",
            "# least, if what each costs alone adds up.",
            *(f"# {line}" for line in about),
            (
                f"# expected rise of the loss: {self.rise:.4g}; with one target for all: "
                f"{self.uniform:.4g}"
            ),
            f"sparsity = {round(self.sparsity, DIGITS)}",
            "sparsity_of = [",
            *(f'  "{_glob(name)}={target:g}",' for name, target in self.targets.items()),
            "]",
        ]
        return "\n".join(lines) + "\n"


def _glob(name: str) -> str:
    """A glob that a name alone matches, within a TOML string."""
    escaped = "".join(f"[{char}]" if char in "*?[" else char for char in name)
    return escaped.replace("\\", "\\\\").replace('"', '\\"')


def curve_of(layer: LayerSensitivity) -> Curve:
    """The measured rises, from 0 sparsity on."""
    points = {point.sparsity: point.loss_rise for point in layer.points}
    points.setdefault(layer.zeros / layer.weights, 0.0)
    ordered = sorted(points.items())
    if ordered[0][0] > 0:
        # Fewer zeros than were measured: no better, and no worse.
        ordered.insert(0, (0.0, ordered[0][1]))
    return tuple(ordered)


def hull(curve: Curve) -> Curve:
    """The lower convex hull of a curve: slopes rise from piece to piece."""
    kept: list[tuple[float, float]] = []
    for x, y in curve:
        while len(kept) > 1:
            (x1, y1), (x2, y2) = kept[-2:]
            if (y2 - y1) * (x - x2) >= (y - y2) * (x2 - x1):
                kept.pop()
            else:
                break
        kept.append((x, y))
    return tuple(kept)


def at(curve: Curve, sparsity: float) -> float:
    """A curve between its points; at its ends it stays what it is."""
    if sparsity <= curve[0][0]:
        return curve[0][1]
    for (x1, y1), (x2, y2) in itertools.pairwise(curve):
        if sparsity <= x2:
            return y1 + (y2 - y1) * (sparsity - x1) / (x2 - x1)
    return curve[-1][1]


def allocate(found: SensitivityResult, sparsity: float, *, macs: bool = False) -> Budgets:
    """The targets that raise the loss least at a sparsity.

    Args:
        found: What was measured.
        sparsity: Over all weights of the sites, or over their multiplications.
        macs: Whether it is over multiplications.

    Raises:
        MethodError: For a sparsity outside [0, 1), or above what was measured.
    """
    check_sparsity(sparsity)
    sizes = [layer.weights * (layer.cost if macs else 1) for layer in found.layers]
    budget = sparsity * sum(sizes)
    targets = _spend(found.layers, sizes, budget)
    if targets is None:
        most = sum(
            size * hull(curve_of(layer))[-1][0]
            for size, layer in zip(sizes, found.layers, strict=True)
        ) / sum(sizes)  # fmt: skip
        raise MethodError(
            f"a sparsity of {sparsity:g} is more than {most:.4g}, up to which it was measured: try "
            "higher ones by --sparsity, for example 0.5,0.8,0.9,0.95,0.98"
        )
    return made(found, targets, sparsity)


def _spend(
    layers: Sequence[LayerSensitivity], sizes: Sequence[float], budget: float
) -> list[float] | None:
    """Targets that amount to a budget; ``None`` where the curves end before."""
    pieces = []
    for index, layer in enumerate(layers):
        points = hull(curve_of(layer))
        for (x1, y1), (x2, y2) in itertools.pairwise(points):
            slope = (y2 - y1) / ((x2 - x1) * sizes[index])
            pieces.append((slope, index, x1, x2))
    targets, left = [0.0] * len(layers), budget
    for _, index, low, high in sorted(pieces):
        if left <= 0:
            break
        amount = min(left, (high - low) * sizes[index])
        targets[index] = low + amount / sizes[index]
        left -= amount
    return None if left > 1e-9 * max(budget, 1.0) else targets


def made(found: SensitivityResult, targets: Sequence[float], uniform: float) -> Budgets:
    """Targets with what they amount to.

    Args:
        found: What was measured.
        targets: One for each layer, below 1; rounded as they are written.
        uniform: The one sparsity to compare with.
    """
    targets = [round(target, DIGITS) for target in targets]
    pairs = list(zip(found.layers, targets, strict=True))
    gone = sum(layer.weights * target for layer, target in pairs)
    spared = sum(layer.weights * layer.cost * target for layer, target in pairs)
    return Budgets(
        targets={layer.name: target for layer, target in pairs},
        sparsity=gone / found.weights,
        macs=spared / found.macs,
        rise=sum(at(curve_of(layer), target) for layer, target in pairs),
        uniform=sum(at(curve_of(layer), uniform) for layer in found.layers),
    )


def within(
    found: SensitivityResult, cost: Callable[[Sequence[float]], float], budget: float
) -> list[float] | None:
    """Targets of the lowest sparsity at which a cost is within a budget.

    The cost falls as the sparsity rises; it is halved until the next decimal says nothing.

    Args:
        found: What was measured.
        cost: Of targets by layer, for example milliseconds.
        budget: At most this.

    Returns:
        One target for each layer; ``None`` where even the highest is not enough.
    """
    sizes = [float(layer.weights) for layer in found.layers]
    most = sum(n * curve_of(layer)[-1][0] for n, layer in zip(sizes, found.layers, strict=True))

    def of(share: float) -> list[float]:
        return _spend(found.layers, sizes, share * most) or [
            curve_of(layer)[-1][0] for layer in found.layers
        ]

    low, high = 0.0, 1.0
    if cost(of(low)) <= budget:
        return of(low)
    if cost(of(high)) > budget:
        return None
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(of(middle)) <= budget else (middle, high)
    return of(high)
