"""STR: soft threshold reparameterisation, one trained threshold for each layer (arXiv 2002.03231).

    θ_l = sigmoid(s_l),   ŵ = sign(w) · max(|w| − θ_l, 0)
    ∂L/∂w   = ∂L/∂ŵ · m,   m = |w| > θ_l
    ∂L/∂s_l = −Σ ∂L/∂ŵ · sign(w) · m · θ_l (1 − θ_l)

Of groups ``g`` of ``n`` weights, with ``u = w/‖g‖`` in place of ``sign(w)``:

    ŵ = w · (1 − θ_l/‖g‖)₊
    ∂L/∂w   = m · (∂L/∂ŵ + θ_l/‖g‖ · (u · Σ_g ∂L/∂ŵ · u / n − ∂L/∂ŵ))
    ∂L/∂s_l = −Σ ∂L/∂ŵ · u · m · θ_l (1 − θ_l)

``s_l`` starts so low that ``sigmoid`` is 0 in fp32; weight decay brings it up towards 0, the faster
the larger it is, and so sets the sparsity. While the threshold is exactly 0 the effective weight is
the weight and gradients go straight through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from st3fx.errors import MethodError
from st3fx.methods.base import LearnedMethod
from st3fx.native.latent import Rule
from st3fx.plan.sites import Site
from st3fx.sparsity import kernels, ops
from st3fx.sparsity.formula import Formula, above, normal, soft
from st3fx.sparsity.granularity import SCHEMA, group_means, magnitudes, unit


def formula(
    weight: Tensor, threshold: Tensor, smallest: float, out: Tensor, *grouping: Any
) -> None:
    """``ŵ``."""
    level = threshold.sigmoid()
    magnitude = magnitudes(weight, *grouping) if grouping else None
    # An exact 0 stays: subtracting it changes nothing.
    bound = torch.where(level > 0, level.clamp_min(smallest), level)
    if not grouping and kernels.soft_threshold(weight, bound, out):
        return
    soft(weight, bound, out, magnitude).add_(0.0)
    if grouping:
        normal(out, out)


def gradient(
    grad: Tensor, weight: Tensor, threshold: Tensor, *grouping: Any
) -> tuple[Tensor, Tensor]:
    """With respect to weight and ``s``."""
    level = threshold.sigmoid()
    slope = level * (1.0 - level)
    found = None if grouping else kernels.gradient(Rule.SIGN, grad, weight, level)
    if found is not None:
        threshold_grad = -found[1].sum(dtype=slope.dtype) * slope
        return found[0], threshold_grad.to(threshold.dtype)
    kept = above(weight, level, *grouping) | (level == 0)
    weight_grad = grad * kept
    direction = weight.sign()
    along = weight_grad * direction
    if grouping:
        magnitude = magnitudes(weight, *grouping)
        direction = unit(weight, magnitude)
        along = weight_grad * direction
        turned = direction * group_means(along, *grouping) - weight_grad
        weight_grad = (weight_grad + turned * unit(level, magnitude)).to(grad.dtype)
    # A sum over the whole layer can leave the range of half precision.
    threshold_grad = -along.sum(dtype=slope.dtype) * slope
    return weight_grad, threshold_grad.to(threshold.dtype)


OPERATOR = ops.define("sigmoid_threshold", SCHEMA, Formula(formula), gradient)


@dataclass(frozen=True)
class STR(LearnedMethod):
    """Soft threshold reparameterisation.

    Attributes:
        initial: Start of every ``s_l``, −150 or less, where the threshold is 0. The paper uses
            −3200 for 100 epochs of ImageNet; shorter trainings need a value nearer to 0.
        decay: Weight decay of the ``s_l``, which sets the sparsity; by default that of the
            weights, as in the paper.
        granularity: What is pruned together; not N of M.

    Raises:
        MethodError: For an ``initial`` with which the training would not start dense, or a negative
            ``decay``.
    """

    initial: float = -3200.0
    decay: float | None = None

    name: ClassVar[str] = "str"
    operator: ClassVar[ops.Operator] = OPERATOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -float("inf") < self.initial <= -150.0:
            raise MethodError(f"STR(initial={self.initial}): give -150 or less, where it is dense")
        if self.decay is not None and not 0.0 <= self.decay < float("inf"):
            raise MethodError(f"STR(decay={self.decay}): give 0 or more")

    def threshold(self, site: Site, weight: Tensor) -> Tensor:
        """``s``, shape (1,): FSDP2 shards no 0-dimensional parameter."""
        start = torch.full((1,), self.initial, dtype=torch.float32, device=weight.device)
        return nn.Parameter(start)

    def trial(self, site: Site, weight: Tensor) -> Tensor:
        """The ``s`` whose threshold is the mean magnitude."""
        mean = self.mean_magnitude(site, weight).clamp(1e-6, 0.5)
        return torch.logit(mean).reshape(1)

    def threshold_decay(self, weight_decay: float) -> float:
        """As the weights', unless it is set."""
        return weight_decay if self.decay is None else self.decay

    def level(self, threshold: Tensor) -> Tensor:
        """``sigmoid(s)``."""
        return threshold.sigmoid()
