"""Sparsity over training, driven by the optimizer step.

``s(t) = s_f · (1 − (1 − (t − t0)/(t1 − t0))^power)``, 0 before ``t0``, ``s_f`` from ``t1`` on
(Zhu & Gupta, arXiv 1710.01878; ST-3 uses power 3).
"""

from __future__ import annotations

from dataclasses import dataclass

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

    Raises:
        MethodError: Unless ``0 <= begin < end <= 1`` and ``power > 0``.
    """

    begin: float = 0.03
    end: float = 0.5
    power: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise MethodError(
                f"CubicSchedule(begin={self.begin}, end={self.end}): "
                "give fractions of the training with 0 <= begin < end <= 1"
            )
        if not self.power > 0.0:
            raise MethodError(f"CubicSchedule(power={self.power}): give a power above 0")

    def sparsity(self, step: int, total_steps: int, target: float) -> float:
        """Sparsity after ``step`` of ``total_steps`` optimizer steps, between 0 and ``target``."""
        first, last = self.begin * total_steps, self.end * total_steps
        return target * cubic_sparsity((step - first) / (last - first), self.power)
