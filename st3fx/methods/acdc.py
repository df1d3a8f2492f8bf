"""AC/DC: phases that train dense and sparse weights in turn (Peste et al., NeurIPS 2021).

Source: arXiv 2106.12379, not compared with its text line by line. Phases are fractions of the
training:

    dense until `begin`; then compressed and decompressed phases of `phase` in turn;
    the last one, compressed, from 1 − `finish` on

    compressed:    ŵ = w · m,   ∂L/∂w = ∂L/∂ŵ · m
                   m: the largest |w| of all sites at the time when the phase began
    decompressed:  ŵ = w, where weights that were pruned train on from 0

The defaults are those of the authors' public settings for 100 epochs of ImageNet: 10 epochs dense,
phases of 5, the last decompressed one of 10 (epochs 75 to 85), the last compressed one of 15.
A compressed phase begins only where a whole decompressed one fits between it and the last
compressed phase, which gives just these.

The momentum of the sites' weights starts from zero as a decompressed phase begins, as in the
paper's experiments (``reset_momentum_after_recycling`` in their public scripts). Of Adam that is
the first moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from st3fx.errors import MethodError
from st3fx.methods.moving import MaskedSite, Move, MovingMethod


@dataclass(frozen=True)
class ACDC(MovingMethod):
    """Compressed and decompressed phases in turn; the last is compressed.

    Attributes:
        sparsity: In compressed phases, over all sites, 0 ≤ sparsity < 1.
        begin: The first compressed phase, as a fraction of the training.
        phase: Length of a phase, as a fraction of the training.
        finish: Length of the last compressed phase, as a fraction of the training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What is pruned together.

    Raises:
        MethodError: For values outside these, or phases for which the training is too short.
    """

    begin: float = field(default=0.1, kw_only=True)
    phase: float = field(default=0.05, kw_only=True)
    finish: float = field(default=0.15, kw_only=True)

    name: ClassVar[str] = "acdc"

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.begin >= 0.0 and self.phase > 0.0 and self.finish > 0.0
        if not fits or not self.begin + self.finish <= 1.0:
            raise MethodError(
                f"ACDC(begin={self.begin}, phase={self.phase}, finish={self.finish}): give "
                "fractions of the training with begin >= 0, phase > 0, finish > 0 and "
                "begin + finish <= 1"
            )

    def is_compressed(self, step: int, total_steps: int) -> bool:
        """Whether the weights are sparse after a step."""
        last = self._last(total_steps)
        if step >= last:
            return True
        length = max(1, round(self.phase * total_steps))
        since = step - max(1, round(self.begin * total_steps))
        if since < 0:
            return False
        ends = step - since % (2 * length) + 2 * length  # of the decompressed phase after it
        return since % (2 * length) < length and ends <= last

    def is_last(self, step: int, total_steps: int) -> bool:
        """Whether the last compressed phase is under way, after which no dense one comes."""
        return step >= self._last(total_steps)

    def _last(self, total_steps: int) -> int:
        """The step with which the last compressed phase begins."""
        return total_steps - max(1, round(self.finish * total_steps))

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """The target in compressed phases, 0 in the others."""
        sparsity = self.sparsity if target is None else target
        return sparsity if self.is_compressed(step, total_steps) else 0.0

    def moves_at(self, step: int, total_steps: int) -> bool:
        """Where a phase begins."""
        now = self.is_compressed(step, total_steps)
        return now != (step > 1 and self.is_compressed(step - 1, total_steps))

    def restarts_at(self, step: int, total_steps: int) -> bool:
        """Where a decompressed phase begins."""
        begins = step > 1 and self.moves_at(step, total_steps)
        return begins and not self.is_compressed(step, total_steps)

    def moved(self, sites: Sequence[MaskedSite], move: Move) -> list[Tensor]:
        """The largest weights of all sites, or all of them."""
        return self.by_magnitude(sites, move.sparsity, move.finder)
