"""GraNet: gradual pruning, with weights that come back for others (Liu et al., NeurIPS 2021).

Source: arXiv 2106.10404, not compared with its text line by line. Symbols: ``s_i`` initial and
``s_f`` final sparsity, ``t`` optimizer step, ``t_0`` and ``t_1`` begin and end of the ramp.

    s_t = s_f + (s_i − s_f) · (1 − (t − t_0)/(t_1 − t_0))³      over all sites
    every Δt steps from t_0 to t_1:
        prune the weights with the smallest |w| of all sites, until s_t of them are gone
        of each site drop the share r of what is left with the smallest |w|
        grow as many of it, with the largest |∂L/∂ŵ| of what is pruned then, from the value 0

Between these steps the sparsity stays; at ``t_1`` it is the target. With ``s_i`` above 0 the masks
at the start are random, by Erdős–Rényi–Kernel (:mod:`st3fx.methods.rigl`); with ``initial=0`` the
training starts dense. The paper trains both, with ``s_i = 0.5`` as the sparse start; ``r = 0.5``.

Here it is laid down so, where the paper leaves it open or differs:

* ``r`` falls to 0 by a cosine over the ramp, as RigL's, so that the last move only prunes.
* What grows is compared within its site, and as many grow as were dropped there.
* The optimizer has made its step, with the masked gradient, before masks move.
* The ramp is that of all scheduled methods, 0.03 to 0.5 of the training; and in a training so short
  that its ramp would have fewer than ten moves, ``Δt`` is less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from st3fx.errors import MethodError
from st3fx.methods.base import check_sparsity
from st3fx.methods.moving import GrowingMethod, MaskedSite, Move
from st3fx.sparsity.masks import cosine
from st3fx.sparsity.schedule import CubicSchedule


@dataclass(frozen=True)
class GraNet(GrowingMethod):
    """Gradual magnitude pruning with regrowth by gradients.

    Attributes:
        sparsity: ``s_f``, over all sites, 0 ≤ sparsity < 1.
        initial: ``s_i``, from the conversion on; 0 starts dense.
        schedule: The ramp from ``s_i`` to ``s_f``.
        interval: ``Δt``, optimizer steps between two moves.
        fraction: ``r``, share of a site's weights that are replaced at first.
        seed: Of the random masks at the start.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What goes and comes together; not N of M.

    Raises:
        MethodError: For values outside these, or an initial sparsity above the final one.
    """

    initial: float = field(default=0.5, kw_only=True)
    fraction: float = field(default=0.5, kw_only=True)
    schedule: CubicSchedule = field(default_factory=CubicSchedule, kw_only=True)

    name: ClassVar[str] = "granet"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsity(self.initial)
        if self.schedule.draw is not None:
            raise MethodError("granet keeps its masks for many steps: no sparsity can be drawn")
        if self.initial > self.sparsity:
            raise MethodError(
                f"{self._call('initial')} is above the sparsity {self.sparsity:g}: give "
                f"{self.sparsity:g} or less, 0 to start dense"
            )

    @property
    def start(self) -> float:
        """``s_i``."""
        return self.initial

    def _ramp(self, total_steps: int) -> tuple[int, int]:
        """The first and the last step at which masks move."""
        first = max(1, round(self.schedule.begin * total_steps))
        return first, max(first + 1, round(self.schedule.end * total_steps))

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """``s_t`` of the last move; the share of zeros that the model came with at least."""
        first, last = self._ramp(total_steps)
        target = self.sparsity if target is None else target
        begin = max(self.initial, min(floor, target))
        if step >= last:
            return target
        if step < first:
            return begin
        moved = step - (step - first) % self.every(last - first)
        ramp = self.schedule.sparsity(moved, total_steps, 1.0)
        return begin + (target - begin) * ramp

    def moves_at(self, step: int, total_steps: int) -> bool:
        """Every ``Δt`` steps of the ramp, and at its end."""
        first, last = self._ramp(total_steps)
        regular = first <= step < last and (step - first) % self.every(last - first) == 0
        return regular or step == last

    def grows_at(self, step: int, total_steps: int) -> bool:
        """At every move but the last."""
        return self.moves_at(step, total_steps) and self._share(step, total_steps) > 0

    def _share(self, step: int, total_steps: int) -> float:
        """``r`` at a step."""
        first, last = self._ramp(total_steps)
        return 0.0 if step >= last else cosine(self.fraction, step - first, last - first)

    def moved(self, sites: Sequence[MaskedSite], move: Move) -> list[Tensor]:
        """Pruned to the sparsity of the step, then a share of each site's weights is replaced."""
        masks = self.largest(sites, move.sparsity, move.finder, anew=False)
        left = [site._replace(mask=mask) for site, mask in zip(sites, masks, strict=True)]
        return self.replaced(left, self._share(move.step, move.total_steps))
