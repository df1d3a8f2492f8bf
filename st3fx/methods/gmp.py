"""GMP: gradual magnitude pruning with a hard threshold (Zhu & Gupta, arXiv 1710.01878).

    ŵ = w · m,   m = |w| > θ;   ∂L/∂w = ∂L/∂ŵ · m          |w| of groups: their magnitude

Pruned weights get no gradient, so that they come back only if the global threshold falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from st3fx.methods.base import ScheduledMethod
from st3fx.native.latent import Rule
from st3fx.sparsity import kernels, ops
from st3fx.sparsity.formula import Formula, above, active_bound, hard
from st3fx.sparsity.granularity import SCHEMA, magnitudes


def formula(
    weight: Tensor, threshold: Tensor, smallest: float, out: Tensor, *grouping: Any
) -> None:
    """``ŵ``; every weight is above a negative ``θ``, which is inactive."""
    magnitude = magnitudes(weight, *grouping) if grouping else None
    hard(weight, active_bound(threshold, smallest), out, magnitude)


def gradient(
    grad: Tensor, weight: Tensor, threshold: Tensor, *grouping: Any
) -> tuple[Tensor, None]:
    """``∂L/∂ŵ`` where the weight is left."""
    if not grouping:
        found = kernels.gradient(Rule.SCALE, grad, weight, threshold)
        if found is not None:
            return found[0], None
    return grad * above(weight, threshold, *grouping), None


OPERATOR = ops.define("hard_threshold", SCHEMA, Formula(formula), gradient)


@dataclass(frozen=True)
class GMP(ScheduledMethod):
    """Gradual magnitude pruning.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What is pruned together.

    Raises:
        MethodError: For values outside these.
    """

    name: ClassVar[str] = "gmp"
    operator: ClassVar[ops.Operator] = OPERATOR
