"""Masks that move: what is left of a weight is decided at a few steps, and stays until the next.

    ŵ = w · m;   ∂L/∂w = ∂L/∂ŵ · m,   at the step before masks move by gradients ∂L/∂w = ∂L/∂ŵ

The optimizer never sees a gradient of a pruned weight. Where a move needs them they are taken
before the optimizer's step, and what the mask has pruned is set to zero then, so that its step and
its momentum are those of the weights that are left. Gradients are clipped before that: at such a
step their norm is that of all weights.

After a move latent weights that are pruned are 0, and what the optimizer keeps of weights that have
gone or come is 0, too: a weight that comes back begins as a new one.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from st3fx.errors import MethodError
from st3fx.methods.base import TargetMethod
from st3fx.methods.gmp import formula
from st3fx.plan.sites import Site
from st3fx.sparsity import ops
from st3fx.sparsity.formula import Formula, above
from st3fx.sparsity.granularity import SCHEMA
from st3fx.sparsity.masks import (
    Units,
    drop_and_grow,
    erdos_renyi_kernel,
    grows,
    whole_counts,
)
from st3fx.sparsity.shards import local_part, whole
from st3fx.sparsity.threshold.scan import NotFiniteError
from st3fx.sparsity.threshold.search import GlobalThreshold
from st3fx.sparsity.ties import untied

OPERATOR = ops.define("masked_weight", SCHEMA, Formula(formula), passes=grows)


class MaskedSite(NamedTuple):
    """A site as a move sees it.

    Attributes:
        site: From the plan.
        weight: The latent weight, sharded or not.
        mask: What is left of it, of its whole shape; empty if nothing is pruned.
        gradient: Of the loss by the effective weight, pruned ones included, sharded as the weight
            is; ``None`` where the step gave none.
    """

    site: Site
    weight: Tensor
    mask: Tensor
    gradient: Tensor | None = None


class Move(NamedTuple):
    """When masks move, and to what.

    Attributes:
        step: Optimizer steps so far.
        total_steps: Of the whole training.
        sparsity: Over all sites, after the move.
        finder: Of the global threshold; it is faster where the last one is near.
    """

    step: int
    total_steps: int
    sparsity: float
    finder: GlobalThreshold


@dataclass(frozen=True)
class MovingMethod(TargetMethod):
    """Masks that are set at some steps and stay between them.

    Raises:
        MethodError: For values outside their ranges.
    """

    operator: ClassVar[ops.Operator] = OPERATOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own_targets:
            raise MethodError(
                f"{self.name} decides for all layers together what each keeps: leave sparsity_of= "
                "or --sparsity-of out"
            )

    @property
    def start(self) -> float:
        """The sparsity from the conversion on."""
        return 0.0

    def moves_at(self, step: int, total_steps: int) -> bool:
        """Whether masks move after a step."""
        raise NotImplementedError

    def grows_at(self, step: int, total_steps: int) -> bool:
        """Whether the move after a step asks for the gradients of pruned weights in it."""
        return False

    def restarts_at(self, step: int, total_steps: int) -> bool:
        """Whether the momentum of all sites' weights begins anew after a step."""
        return False

    def first(self, sites: Sequence[MaskedSite]) -> list[Tensor]:
        """The masks at the conversion, in the sites' order."""
        return [site.mask.new_empty(0) for site in sites]

    def moved(self, sites: Sequence[MaskedSite], move: Move) -> list[Tensor]:
        """The masks after a step at which they move, in the sites' order.

        Raises:
            NotFiniteError: If weights are not numbers.
        """
        raise NotImplementedError

    def by_magnitude(
        self, sites: Sequence[MaskedSite], sparsity: float, finder: GlobalThreshold
    ) -> list[Tensor]:
        """The masks that leave the largest weights, whatever was pruned before.

        Raises:
            NotFiniteError: If weights are not numbers.
        """
        return self.largest(sites, sparsity, finder, anew=True)

    def largest(
        self,
        sites: Sequence[MaskedSite],
        sparsity: float,
        finder: GlobalThreshold,
        *,
        anew: bool,
    ) -> list[Tensor]:
        """The masks of one global threshold.

        Args:
            sites: All of them.
            sparsity: Over all sites.
            finder: Of the last search.
            anew: Whether weights that are pruned compete with the others; else they stay so, as
                far as the sparsity allows.

        Raises:
            NotFiniteError: If weights are not numbers.
        """
        if sparsity <= 0:
            return [site.mask.new_empty(0) for site in sites]
        weights = [_compared(site, anew=anew) for site in sites]
        costs = [site.site.cost for site in sites] if self.budget == "macs" else None
        groupings = [self.granularity.grouping(site.site) for site in sites]
        scales, share = [1.0] * len(sites), self.share_of_groups(sparsity)
        level = finder.find(weights, scales, share, costs, groupings)
        masks = []
        for index, (site, weight) in enumerate(zip(sites, weights, strict=True)):
            grouping = self.granularity.constants(site.site)
            own = finder.ties.get(index)
            own = self.level_of(site.site, level, weight.dtype) if own is None else own
            mask = above(*untied(whole(weight), own.to(weight.device), *grouping), *grouping)
            masks.append(mask.new_empty(0) if bool(mask.all()) else mask)
        return masks


_LEAST = 2.0**-40
"""Below it magnitudes are equal. It is above zero, so that equal ones can be told apart by place,
and so large that its square is exact in single precision."""


def _compared(site: MaskedSite, *, anew: bool) -> Tensor:
    """What a global threshold compares: magnitudes, those of pruned weights below all others."""
    sharded = isinstance(site.weight, DTensor)
    part = site.weight.to_local() if isinstance(site.weight, DTensor) else site.weight
    part = part.detach().to(torch.promote_types(part.dtype, torch.float32)).abs()
    result = part.clamp_min(_LEAST)
    if site.mask.numel():
        pruned = part.clamp_min(_LEAST / 2) if anew else part.new_full((), _LEAST / 2)
        result = torch.where(local_part(site.mask, site.weight), result, pruned)
    if not sharded:
        return result
    return DTensor.from_local(
        result, site.weight.device_mesh, site.weight.placements,  # type: ignore[attr-defined]
        shape=site.weight.shape, stride=site.weight.stride(),
    )  # fmt: skip


@dataclass(frozen=True)
class GrowingMethod(MovingMethod):
    """Weights go by their magnitudes, and others come by the magnitudes of their gradients.

    Attributes:
        interval: Optimizer steps between two moves; less in a training so short that there would be
            fewer than ten.
        fraction: Share of a site's weights that go, and come, at the first move; it falls to 0 by a
            cosine.
        seed: Of the masks at the conversion.

    Raises:
        MethodError: For values outside their ranges, or N of M.
    """

    interval: int = field(default=100, kw_only=True)
    fraction: float = field(default=0.3, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.granularity.most < 1:
            raise MethodError(
                f"{self.name} lets weights go and come anywhere in a layer, which "
                f"{self.granularity.text} does not allow: take acdc, or a method with thresholds "
                "such as st3"
            )
        if type(self.interval) is not int or self.interval < 1:
            raise MethodError(f"{self._call('interval')}: give optimizer steps, 1 or more")
        if not 0.0 <= self.fraction <= 1.0:
            raise MethodError(f"{self._call('fraction')}: give the share that moves, 0 to 1")
        if type(self.seed) is not int or self.seed < 0:
            raise MethodError(f"{self._call('seed')}: give a whole number, 0 or more")

    def _call(self, name: str) -> str:
        return f"{type(self).__name__}({name}={getattr(self, name)!r})"

    def require(self, sites: Sequence[Site]) -> None:
        """Refuse weights that are computed: their gradients are nowhere kept.

        Raises:
            MethodError: Naming one.
        """
        for site in sites:
            if site.computed:
                raise MethodError(
                    f"{self.name} grows weights by their gradients, and {site.name} is computed "
                    "before it multiplies, so that it has none of its own: exclude it, or take "
                    "acdc or a method with thresholds such as st3"
                )

    def every(self, span: int) -> int:
        """Steps between two moves in a span of a training in which masks move."""
        return max(1, min(self.interval, span // 10))

    def densities(self, sites: Sequence[Site], density: float) -> list[float]:
        """What each site keeps, for a density over all of them: Erdős–Rényi–Kernel."""
        return erdos_renyi_kernel([site.shape for site in sites], self._shares(sites), density)

    def _shares(self, sites: Sequence[Site]) -> list[int]:
        return [site.numel * self._cost(site) for site in sites]

    def _cost(self, site: Site) -> int:
        return site.cost if self.budget == "macs" else 1

    def counts(self, sites: Sequence[Site], sparsity: float) -> list[int]:
        """How many weights each site keeps, whole groups, for a sparsity over all sites."""
        return whole_counts(
            self.densities(sites, 1 - sparsity),
            [site.numel for site in sites],
            [self.granularity.largest(site) for site in sites],
            [self._cost(site) for site in sites],
        )

    def units(self, site: MaskedSite) -> Units:
        """What of a site goes and comes together."""
        device = site.mask.device
        return Units(site.site.shape, self.granularity.grouping(site.site), device)

    def first(self, sites: Sequence[MaskedSite]) -> list[Tensor]:
        """Random masks, the same on every device and in every process."""
        if self.start <= 0:
            return super().first(sites)
        masks = []
        counts = self.counts([site.site for site in sites], self.start)
        for site, kept in zip(sites, counts, strict=True):
            units = self.units(site)
            generator = torch.Generator().manual_seed(
                (self.seed * 2654435761 + zlib.crc32(site.site.name.encode())) % 2**63
            )
            drawn = torch.rand(len(units.sizes), generator=generator).to(site.mask.device)
            everything = torch.ones_like(drawn, dtype=torch.bool)
            masks.append(units.mask(units.largest(drawn, everything, kept)))
        return masks

    def largest_of_each(self, sites: Sequence[MaskedSite], sparsity: float) -> list[Tensor]:
        """The masks that leave the largest weights of each site, as many as it has to keep.

        Raises:
            NotFiniteError: If weights are not numbers.
        """
        masks, counts = [], self.counts([site.site for site in sites], sparsity)
        for index, (site, kept) in enumerate(zip(sites, counts, strict=True)):
            units = self.units(site)
            values = units.values(_whole_numbers(site.weight, index))
            # Among equals, as those that are 0 since they were pruned, the ones that are left.
            active = units.flags(site.mask)
            stays = units.largest(values, values > 0, kept)
            more = units.largest(active.float(), ~stays, kept - units.weight_of(stays))
            masks.append(units.mask(stays | more))
        return masks

    def replaced(
        self,
        sites: Sequence[MaskedSite],
        fraction: float,
        counts: Sequence[int | None] | None = None,
    ) -> list[Tensor]:
        """The masks after a share of each site's weights has gone, and as many have come.

        Args:
            sites: All of them.
            fraction: The share.
            counts: How many weights each keeps; by default as many as it has.
        """
        masks, counts = [], [None] * len(sites) if counts is None else counts
        for index, site in enumerate(sites):
            mask = site.mask
            if fraction > 0 and mask.numel() and site.gradient is not None:
                weight, gradient = _whole_numbers(site.weight, index), whole(site.gradient)
                mask = drop_and_grow(
                    self.units(site), mask, weight, gradient, fraction, counts[index]
                )
            masks.append(mask)
        return masks


def _whole_numbers(weight: Tensor, index: int) -> Tensor:
    """A whole weight, of the site at ``index``, that is made of numbers.

    Raises:
        NotFiniteError: If it is not.
    """
    gathered = whole(weight.detach())
    if not bool(gathered.isfinite().all()):
        raise NotFiniteError("NaN or infinite", index)
    return gathered
