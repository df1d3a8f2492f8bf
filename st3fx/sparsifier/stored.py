"""Sites whose weights lie in files: thresholds are set over them, and they are folded, by rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from st3fx.methods.base import TargetMethod
from st3fx.plan.sites import Layout
from st3fx.sparsifier.bound import Bound
from st3fx.sparsifier.thresholds import FEWEST_ZEROS
from st3fx.sparsity.drawing import decided, is_drawn
from st3fx.sparsity.mask_bits import part_of
from st3fx.sparsity.stored import Stored
from st3fx.sparsity.ties import is_split, untied_rows


@dataclass(frozen=True)
class StoredBound(Bound):
    """A site of a model whose weights are on the meta device, with the weight in a file.

    Attributes:
        stored: The weight.
        bits: Its mask as state dicts have it; ``None`` where there is none.
        probability: The probabilities that its mask is drawn by, if the method has any.
    """

    stored: Stored = field(kw_only=True)
    bits: Tensor | None = field(default=None, kw_only=True)
    probability: Stored | None = field(default=None, kw_only=True)

    @property
    def width(self) -> int:
        """Weights of a row."""
        return math.prod(self.site.shape[1:])

    def searched(self) -> Any:
        """What the global threshold is one of, a :class:`Stored`; 0 where the mask has pruned."""
        own = self.stored if self.probability is None else self.probability
        if self.bits is None:
            return own
        return Stored(own.shape, own.dtype, lambda a, b: own.rows(a, b) * self.mask(a, b))

    def has_mask(self) -> bool:
        """Whether a mask holds weights at zero."""
        return self.bits is not None

    def held(self) -> int:
        """How many weights the mask holds at zero."""
        if self.bits is None:
            return 0
        return sum(int((~self.mask(a, b)).sum()) for a, b in self.ends())

    def tensors(self, key: str) -> list[Tensor]:
        """As those of any site; but a mask is not among them: it is applied row by row."""
        if key == "mask":
            return [torch.empty(0, dtype=torch.bool)]
        return super().tensors(key)

    def mask(self, first: int, last: int) -> Tensor:
        """Some rows of the mask; empty where there is none."""
        if self.bits is None:
            return torch.empty(0, dtype=torch.bool)
        found = part_of(self.bits, first * self.width, last * self.width)
        return found.reshape(last - first, *self.site.shape[1:])

    def ends(self) -> list[tuple[int, int]]:
        """The rows to fold at a time: all of them where output channels are not the rows."""
        grouping = self.sparse.method.granularity.grouping(self.site)
        return self.stored.ends(grouping, whole=self.site.layout != Layout((0,)))

    @torch.no_grad()
    def folded(self, first: int, last: int) -> Tensor:
        """Some rows of the effective weight, in memory of their own; see :meth:`ends`."""
        weight = self.stored.rows(first, last)
        inputs = self.sparse.inputs(self.owner, self.parameter, weight)
        constants = inputs.constants
        if self.probability is not None:
            constants = (self.probability.rows(first, last), *constants[1:])
        threshold = inputs.threshold.detach()
        if threshold.dim() and threshold.shape[0] == self.site.shape[0] and not (
            is_split(threshold) or is_drawn(threshold)
        ):  # fmt: skip
            threshold = threshold[first:last]  # one for each output channel
        out, place = torch.empty_like(weight), first * self.width
        single = len(constants) == inputs.formula.own and not inputs.formula.learned
        if single and is_split(threshold):
            weight, threshold = untied_rows(weight, threshold, place)
        inputs = inputs._replace(
            weight=weight, threshold=decided(threshold), mask=self.mask(first, last),
            constants=constants, first=place,
        )  # fmt: skip
        inputs.evaluate(out)
        return out


def floor_of(bound: Sequence[StoredBound]) -> float:
    """The share of zeros that the weights came with, as ``Thresholds.keep_zeros`` finds it."""
    zeros, shares = 0, []
    for item in bound:
        method = item.sparse.method
        scale = method.scale(item.site) if isinstance(method, TargetMethod) else 1.0
        count = item.stored.zeros(method.granularity.grouping(item.site), scale)
        zeros += count
        shares.append(count / max(1, item.site.numel))
    is_sparse = any(FEWEST_ZEROS <= share < 1 for share in shares)
    return zeros / max(1, sum(item.site.numel for item in bound)) if is_sparse else 0.0
