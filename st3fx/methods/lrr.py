"""LRR: magnitude pruning in cycles, the learning rate rewound (Renda et al., arXiv 2003.02389).

Of ``C`` cycles of equal length the first trains dense. Each later one begins by pruning the same
share of what is left, globally by magnitude, and runs the schedule of the learning rate from its
start again, with the weights as they are. In cycle ``c`` = 0 … C − 1 the sparsity is

    s_c = 1 − (1 − s)^(c / (C − 1))         ŵ = w · m,   ∂L/∂w = ∂L/∂ŵ · m

and what ``m`` has pruned stays pruned. That is the algorithm that the paper proposes: train, prune
20 % of the weights globally, train again at the same learning rates for as long, until it is sparse
enough; without ``cycles`` there are as few as prune 20 % or less each.

Departures: the number of cycles and the target give the share, so that the target is met exactly,
where the paper stops at the power of 0.8 that is nearest; all cycles share the run's steps, where
the paper trains each for the whole length of a training; a cycle prunes after its first step and
not before it, so that an evaluation at the end of a cycle is of the trained model; momentum goes on
where the learning rate is rewound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from st3fx.errors import MethodError
from st3fx.methods.base import ScheduledMethod
from st3fx.methods.gmp import OPERATOR
from st3fx.sparsity import ops
from st3fx.sparsity.schedule import CubicSchedule

SHARE = 0.2
"""What a cycle prunes at most of what is left, where the number of cycles is not given."""


@dataclass(frozen=True)
class LRR(ScheduledMethod):
    """Iterative magnitude pruning with learning-rate rewinding.

    ``st3fx train`` rewinds the learning rate by itself; a loop of your own by :meth:`progress`.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        cycles: How often the schedule of the learning rate runs, the dense training included: 2 or
            more. By default as many as prune 20 % or less each: 12 for 90 %.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What is pruned together.

    Raises:
        MethodError: For values outside these, or for a schedule: the cycles are that.
    """

    cycles: int | None = None

    name: ClassVar[str] = "lrr"
    operator: ClassVar[ops.Operator] = OPERATOR
    keeps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cycles is not None and (type(self.cycles) is not int or self.cycles < 2):
            raise MethodError(
                f"LRR(cycles={self.cycles!r}): give 2 or more, of which the first trains dense"
            )
        if self.schedule != CubicSchedule():
            raise MethodError(
                "lrr prunes once in each cycle and has no ramp: leave schedule=, --ramp and "
                "--draw-sparsity out, and give cycles= or --method-option cycles=N"
            )

    @property
    def count(self) -> int:
        """How many cycles there are."""
        if self.cycles is not None:
            return self.cycles
        # A rounding error must not make one cycle more of an exact power.
        prunings = math.log(1 - self.sparsity) / math.log(1 - SHARE)
        return 1 + max(1, math.ceil(prunings - 1e-9))

    def at(
        self, step: int, total_steps: int, floor: float = 0.0, target: float | None = None
    ) -> float:
        """``s_c`` of the cycle that a step belongs to; from ``floor`` on if there is one."""
        cycle, last = self._cycle(step, total_steps), max(floor, target or self.sparsity)
        left = (1 - last) / (1 - floor)
        if cycle == self.count - 1:
            return last
        return float(1 - (1 - floor) * left ** (cycle / (self.count - 1)))

    def is_last(self, step: int, total_steps: int) -> bool:
        """Whether the last cycle is under way: one before has the target where all is kept."""
        return self._cycle(step, total_steps) == self.count - 1

    def period(self, step: int, total_steps: int) -> range:
        """The steps of the cycle that step ``step``, 0 for the first, belongs to."""
        cycle = self._cycle(step + 1, total_steps)
        return range(cycle * total_steps // self.count, (cycle + 1) * total_steps // self.count)

    def progress(self, step: int, total_steps: int) -> float:
        """How much of its cycle has passed before a step: what a learning rate should follow.

        Args:
            step: 0 for the first.
            total_steps: Optimizer steps of the whole training.

        Returns:
            0 at the first step of each cycle, below 1; 1 from ``total_steps`` on.
        """
        if step >= total_steps:
            return 1.0
        period = self.period(step, total_steps)
        return (step - period.start) / len(period)

    def _cycle(self, step: int, total_steps: int) -> int:
        """The cycle, from 0, of step ``step``, counted from 1."""
        return min(self.count - 1, max(0, (step * self.count - 1) // total_steps))
