"""Masks that move: which weights of a site stay, and which come back, by exact counts.

A site's mask may decide alone what is left of it. Its threshold then is one of two numbers, both so
small that they prune nothing by themselves, which say where gradients arrive:

    MASKED    where the mask is one: ∂L/∂w = ∂L/∂ŵ · m
    GROWING   everywhere: ∂L/∂w = ∂L/∂ŵ, so that pruned weights can be compared by their gradients

What is pruned together is one unit, a weight or a group. A choice among units is exact: of those
with equal values the ones with the larger keys stay (:mod:`st3fx.sparsity.ties`), whatever the
device or the memory format.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from st3fx.sparsity.granularity import Grouping, magnitudes, parts
from st3fx.sparsity.ties import key_of, keys

MASKED = 0.0
GROWING = 2.0**-120
"""Below the smallest active threshold of any dtype, which formulas raise it to."""


def grows(threshold: Tensor) -> Tensor:
    """Whether the gradient reaches the weights that a mask has pruned, 0-dimensional."""
    return threshold > 0


class Units:
    """What of one weight is pruned together, as vectors over its units.

    Attributes:
        sizes: Weights of each unit, int64.
    """

    def __init__(
        self, shape: Sequence[int], grouping: Grouping | None, device: torch.device
    ) -> None:
        """The units of a weight.

        Args:
            shape: Of the whole weight.
            grouping: Groups that go as a whole; ``None`` for single weights.
            device: Where values will be.
        """
        self._shape, self._grouping = tuple(shape), grouping
        if grouping is None:
            count = math.prod(self._shape)
            self.sizes = torch.ones((), dtype=torch.int64, device=device).expand(count)
            self._keys = self.sizes[:0]
            return
        places = keys(self._shape, tuple(grouping), device)
        self._keys = self._first(places)
        found = [
            torch.full((part.view.numel() // part.size,), part.size, device=device)
            for part in parts(places, grouping)
        ]
        self.sizes = torch.cat(found)

    def values(self, tensor: Tensor) -> Tensor:
        """The magnitude of each unit: ``|x|``, or a group's root mean square.

        Args:
            tensor: Of the weight's shape: the weight, or its gradient.

        Returns:
            In fp32 at least.
        """
        tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
        if self._grouping is None:
            return tensor.abs().reshape(-1)
        return self._first(magnitudes(tensor, *self._grouping))

    def flags(self, mask: Tensor) -> Tensor:
        """Which units a mask keeps; all of them if it is empty."""
        if not mask.numel():
            return torch.ones(len(self.sizes), dtype=torch.bool, device=self.sizes.device)
        return mask.reshape(-1) if self._grouping is None else self._first(mask)

    def mask(self, flags: Tensor) -> Tensor:
        """The mask, of the weight's shape, that keeps these units; empty if that is all of them."""
        if bool(flags.all()):
            return flags.new_empty(0)
        if self._grouping is None:
            return flags.reshape(self._shape).clone()
        mask, begin = flags.new_empty(self._shape), 0
        for part in parts(mask, self._grouping):
            one = part.view.amax(part.dims, keepdim=True)
            part.view.copy_(flags[begin : begin + one.numel()].reshape(one.shape))
            begin += one.numel()
        return mask

    def _by_key(self, units: Tensor) -> Tensor:
        """These units, those first that stay among equals; no two have the same key."""
        own = key_of(units.clone()) if self._grouping is None else self._keys[units]
        return units[own.argsort(descending=True)]

    def _first(self, tensor: Tensor) -> Tensor:
        """What all weights of a unit have in common, one value for each."""
        assert self._grouping is not None
        found = []
        for part in parts(tensor, self._grouping):
            own = part.view
            for dim in part.dims:
                own = own.narrow(dim, 0, 1)
            found.append(own.reshape(-1))
        return torch.cat(found)

    def largest(self, values: Tensor, among: Tensor, budget: int) -> Tensor:
        """The units with the largest values that together have ``budget`` weights at most.

        Args:
            values: One for each unit, not negative.
            among: Which of them may be taken.
            budget: In weights.
        """
        values = torch.where(among, values, -1.0)
        size = int(self.sizes[0]) if len(self.sizes) else 1
        if not bool((self.sizes == size).all()):
            return self._largest_of_sizes(values, budget)
        count = min(max(0, budget) // size, int(among.sum()))
        if count <= 0:
            return torch.zeros_like(among)
        bound = values.kthvalue(len(values) - count + 1).values
        taken = values > bound
        tied = (values == bound).nonzero()[:, 0]
        wanted = count - int(taken.sum())
        taken[self._by_key(tied)[:wanted]] = True
        return taken

    def _largest_of_sizes(self, values: Tensor, budget: int) -> Tensor:
        """The same where a row's last group is shorter: in their order, as long as they fit.

        What is left of the budget then goes to the next ones that are short enough.
        """
        order = self._by_key(torch.arange(len(values), device=values.device))
        order = order[values[order].argsort(descending=True, stable=True)]
        order = order[values[order] >= 0]
        taken = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        taken[order[self.sizes[order].cumsum(0) <= budget]] = True
        left = budget - self.weight_of(taken)
        short = order[(self.sizes[order] <= left) & ~taken[order]]
        taken[short[self.sizes[short].cumsum(0) <= left]] = True
        return taken

    def weight_of(self, flags: Tensor) -> int:
        """How many weights these units have."""
        return int((self.sizes * flags).sum())


def drop_and_grow(
    units: Units,
    mask: Tensor,
    weight: Tensor,
    gradient: Tensor,
    fraction: float,
    kept: int | None = None,
) -> Tensor:
    """A mask that keeps as many weights: the smallest go, those with the largest gradients come.

    What went may come back at once: it is a candidate like any other that is pruned.

    Args:
        units: Of the weight.
        mask: Of its shape; empty if nothing is pruned.
        weight: The whole weight.
        gradient: Of the loss by the effective weight, pruned ones included.
        fraction: Share of the weights that are left which go; rounded down.
        kept: How many weights are to be left; by default as many as there are. Groups of different
            sizes may miss it by less than a group, which must not add up over moves.
    """
    active = units.flags(mask)
    kept = units.weight_of(active) if kept is None else kept
    stays = units.largest(units.values(weight), active, kept - int(fraction * kept))
    rest = kept - units.weight_of(stays)
    return units.mask(stays | units.largest(units.values(gradient), ~stays, rest))


def cosine(fraction: float, step: float, end: float) -> float:
    """``α/2 · (1 + cos(t·π/T_end))``: ``fraction`` at step 0, 0 at ``end``."""
    return fraction / 2 * (1 + math.cos(math.pi * min(1.0, max(0.0, step / max(end, 1e-9)))))


def erdos_renyi_kernel(
    shapes: Sequence[Sequence[int]], shares: Sequence[int], density: float
) -> list[float]:
    """The density of each layer, in proportion to ``Σ dims / Π dims`` of its weight, 1 at most.

    Args:
        shapes: Of the layers' weights.
        shares: What all weights of a layer count together.
        density: Over all layers, as a share of these.

    Returns:
        Densities ``d_l`` with ``Σ d_l·share_l = density · Σ share_l``.
    """
    raw = [sum(shape) / max(1, math.prod(shape)) for shape in shapes]
    return _scaled(raw, shares, density, set())


def uniform(shares: Sequence[int], density: float) -> list[float]:
    """The same density for each layer but the first, which stays dense where that is possible."""
    dense = {0} if len(shares) > 1 and shares[0] < density * sum(shares) else set()
    return _scaled([1.0] * len(shares), shares, density, dense)


def _scaled(
    raw: Sequence[float], shares: Sequence[int], density: float, dense: set[int]
) -> list[float]:
    """Densities in proportion to ``raw``; a layer that would have more than 1 is dense."""
    dense = set(dense)
    while True:
        left = density * sum(shares) - sum(shares[i] for i in dense)
        others = [i for i in range(len(raw)) if i not in dense]
        total = sum(raw[i] * shares[i] for i in others)
        scale = max(0.0, left) / total if total else 0.0
        over = {i for i in others if scale * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(raw))]
        dense |= over


def whole_counts(
    densities: Sequence[float], counts: Sequence[int], sizes: Sequence[int], costs: Sequence[int]
) -> list[int]:
    """How many weights each layer keeps: whole units, and the total as near as units allow.

    Args:
        densities: Of the layers.
        counts: Their weights.
        sizes: Weights of a unit of each.
        costs: What a weight of each counts.

    Returns:
        Multiples of the sizes, or all weights of a layer; what they count together is less than
        ``Σ density·count·cost`` by less than a unit of the layer where that is largest.
    """
    exact = [density * count for density, count in zip(densities, counts, strict=True)]
    # A quantile keeps the weight that it falls on as seldom: rounding errors of a float are not
    # half a weight.
    kept = [
        count if want >= count else int((want + 1e-6) // size) * size
        for want, count, size in zip(exact, counts, sizes, strict=True)
    ]
    left = sum(want * cost for want, cost in zip(exact, costs, strict=True))
    left -= sum(have * cost for have, cost in zip(kept, costs, strict=True))
    order = sorted(range(len(kept)), key=lambda i: (kept[i] - exact[i]) / sizes[i])
    for index in order:
        unit = min(sizes[index], counts[index] - kept[index])
        if unit > 0 and unit * costs[index] <= left + 1e-6 * max(1.0, left):
            kept[index] += unit
            left -= unit * costs[index]
    return kept
