"""Sparsity over training, driven by the optimizer step.

``s(t) = s_f · (1 − (1 − (t − t0)/(t1 − t0))^power)``, 0 before ``t0``, ``s_f`` from ``t1`` on
(Zhu & Gupta, arXiv 1710.01878; ST-3 uses power 3).

With ``draw=(a, b)`` each training step has a target of its own in the place of ``s_f``, from ``a``
to ``b``: what it leaves, ``1 − s``, is log-uniform, so that each halving of it is as likely. The
number of the step and a seed say which one: the same in all processes, and after a resumption.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from st3fx.errors import MethodError


def cubic_sparsity(progress: float, power: float) -> float:
    """Share of the final sparsity after ``progress`` of the ramp; progress is clamped to [0, 1]."""
    remaining = 1.0 - min(max(progress, 0.0), 1.0)
    return float(1.0 - remaining**power)


@dataclass(frozen=True)
class CubicSchedule:
    """Ramp from 0 to the target between two fractions of the training.

    Attributes:
        begin: Start of the ramp as a fraction of ``total_steps``.
        end: End of the ramp as a fraction of ``total_steps``; the target holds from here on.
        power: Exponent of the ramp; 3 is cubic, 1 is linear.
        draw: Between which sparsities the target of each training step is drawn; ``None``: it is
            the method's. The method's it is in any case after the last step, and wherever the model
            is evaluated, copied, folded or saved as a bundle.
        seed: Of what is drawn.

    Raises:
        MethodError: Unless ``0 <= begin < end <= 1``, ``power > 0``, and what is drawn lies between
            two sparsities of which the first is smaller.
    """

    begin: float = 0.03
    end: float = 0.5
    power: float = 3.0
    draw: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise MethodError(
                f"CubicSchedule(begin={self.begin}, end={self.end}): "
                "give fractions of the training with 0 <= begin < end <= 1"
            )
        if not self.power > 0.0:
            raise MethodError(f"CubicSchedule(power={self.power}): give a power above 0")
        if self.draw is not None:
            object.__setattr__(self, "draw", _bounds(self.draw))

    def sparsity(self, step: int, total_steps: int, target: float) -> float:
        """Sparsity after ``step`` of ``total_steps`` optimizer steps, between 0 and ``target``."""
        first, last = self.begin * total_steps, self.end * total_steps
        return target * cubic_sparsity((step - first) / (last - first), self.power)

    def drawn(self, step: int) -> float | None:
        """The target of one training step; ``None`` if none is drawn."""
        if self.draw is None:
            return None
        low, high = self.draw
        words = np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)
        share = (int(words[0]) >> 11) * 2.0**-53
        left: float = (1 - low) ** (1 - share) * (1 - high) ** share
        return min(max(low, 1 - left), high)


def _bounds(draw: object) -> tuple[float, float]:
    """Two sparsities, as a file may have them, too."""
    ends = draw if isinstance(draw, tuple | list) else ()
    numbers = [float(end) for end in ends if isinstance(end, int | float)]
    if not (len(ends) == len(numbers) == 2 and 0.0 <= numbers[0] < numbers[1] < 1.0):
        raise MethodError(
            f"CubicSchedule(draw={draw!r}): give the least and the largest sparsity to draw, "
            "0 <= least < largest < 1"
        )
    return numbers[0], numbers[1]
