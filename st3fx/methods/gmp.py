"""GMP: gradual magnitude pruning with a hard threshold (Zhu & Gupta, arXiv 1710.01878).

    ŵ = w · m,   m = |w| > θ;   ∂L/∂w = ∂L/∂ŵ · m

Pruned weights get no gradient, so that they come back only if the global threshold falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from st3fx.methods.base import ScheduledMethod
from st3fx.sparsity import ops
from st3fx.sparsity.formula import Formula, above, active_bound, hard


def formula(weight: Tensor, threshold: Tensor, smallest: float, out: Tensor) -> None:
    """``ŵ``; every weight is above a negative ``θ``, which is inactive."""
    hard(weight, active_bound(threshold, smallest), out)


def gradient(grad: Tensor, weight: Tensor, threshold: Tensor) -> tuple[Tensor, None]:
    """``∂L/∂ŵ`` where the weight is left."""
    return grad * above(weight, threshold), None


FORMULA = Formula(formula)
OP = ops.define("hard_threshold", "", FORMULA, gradient)


@dataclass(frozen=True)
class GMP(ScheduledMethod):
    """Gradual magnitude pruning.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.

    Raises:
        MethodError: For values outside these.
    """

    name: ClassVar[str] = "gmp"
    op: ClassVar[ops.Op] = OP
    formula: ClassVar[Formula] = FORMULA
    straight_through: ClassVar[bool] = False
