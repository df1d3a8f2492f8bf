"""Feather: between soft and hard threshold, scaled gradients of pruned weights (arXiv 2310.02448).

ŵ = sign(w) · (|w|^p − θ^p)^(1/p) where |w| > θ, else 0;   p = 3
∂L/∂w = ∂L/∂ŵ · (1 where |w| > θ, else g);   g = 0.5 for a target above 0.95, else 1
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from st3fx.errors import MethodError
from st3fx.methods.base import ScheduledMethod
from st3fx.native.latent import Rule
from st3fx.plan.sites import Site
from st3fx.sparsity import kernels, ops
from st3fx.sparsity.formula import Formula, above, is_inactive, normal
from st3fx.sparsity.granularity import SCHEMA, magnitudes
from st3fx.sparsity.schedule import CubicSchedule


def formula(
    weight: Tensor,
    threshold: Tensor,
    smallest: float,
    out: Tensor,
    p: float,
    pruned_gradient: float,
    *grouping: Any,
) -> None:
    """``ŵ`` as ``w · (1 − (θ/|w|)^p)^(1/p)``, which no small weight underflows."""
    if is_inactive(threshold):
        out.copy_(weight)
        return
    bound = threshold.clamp_min(smallest)
    if not grouping and kernels.power_threshold(weight, bound, p, out):
        return
    ratio = bound / magnitudes(weight, *grouping).clamp_min_(bound)
    torch.mul(weight, kernels.powers(ratio, p), out=out).add_(0.0)
    if grouping:
        normal(out, out)
    if threshold.device.type != "cpu":
        torch.where(threshold < 0, weight, out, out=out)


def gradient(
    grad: Tensor,
    weight: Tensor,
    threshold: Tensor,
    p: float,
    pruned_gradient: float,
    *grouping: Any,
) -> tuple[Tensor, None]:
    """``∂L/∂ŵ``, scaled where the weight is pruned."""
    if pruned_gradient == 1.0:
        return grad, None
    if not grouping:
        found = kernels.gradient(Rule.SCALE, grad, weight, threshold, factor=pruned_gradient)
        if found is not None:
            return found[0], None
    return torch.where(above(weight, threshold, *grouping), grad, grad * pruned_gradient), None


OPERATOR = ops.define(
    "power_threshold",
    f"float p, float pruned_gradient, {SCHEMA}",
    Formula(formula, own=2),
    gradient,
)


@dataclass(frozen=True)
class Feather(ScheduledMethod):
    """Feather's threshold with one global threshold; the ramp ends halfway, as the paper's.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        p: Between 1 (soft threshold) and large (hard threshold).
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.
        granularity: What is pruned together.

    Raises:
        MethodError: For values outside these.
    """

    p: float = 3.0
    schedule: CubicSchedule = field(default_factory=lambda: CubicSchedule(0.0, 0.5), kw_only=True)

    name: ClassVar[str] = "feather"
    operator: ClassVar[ops.Operator] = OPERATOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1.0 <= self.p < float("inf"):
            raise MethodError(f"Feather(p={self.p}): give a power of 1 or more, for example 3")

    def constants(self, site: Site) -> tuple[Any, ...]:
        """``p`` and ``g``."""
        return (self.p, 0.5 if self.sparsity > 0.95 else 1.0)
