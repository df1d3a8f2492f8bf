"""DST: dynamic sparse training with a trainable threshold for each neuron (arXiv 2005.06870).

Symbols: ``t_k ≥ 0`` threshold of output neuron ``k``, ``S`` the unit step.

    m  = S(|w| − t_k),   ŵ = w · m
    S'(x) := 2 − 4|x| for |x| ≤ 0.4;  0.4 for 0.4 < |x| ≤ 1;  else 0          long-tailed
    ∂L/∂w   = ∂L/∂ŵ · (m + |w| · S'(|w| − t_k))
    ∂L/∂t_k = −Σ_{i in k} ∂L/∂ŵ_i · w_i · S'(|w_i| − t_k)
    penalty: α · Σ_k exp(−t_k)

Of groups ``g`` of ``n`` weights ``‖g‖`` stands for ``|w|``, and with ``u = w/‖g‖``

    ∂L/∂w   = ∂L/∂ŵ · m + ‖g‖ · S'(‖g‖ − t_k) · u · Σ_g ∂L/∂ŵ · u / n

A layer that keeps 1 % of its weights or less gets its thresholds set back to 0. The thresholds
start at 0 with the first :meth:`~st3fx.Sparsifier.step`; until then they are inactive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from st3fx.errors import MethodError
from st3fx.methods.base import LearnedMethod, per_channel
from st3fx.native.latent import Rule
from st3fx.plan.sites import Layout, Site
from st3fx.sparsity import kernels, ops
from st3fx.sparsity.formula import INACTIVE, Formula, active_bound, channel_view, hard
from st3fx.sparsity.granularity import SCHEMA, Unstructured, group_means, magnitudes, unit
from st3fx.sparsity.shards import local, local_part, spread_of, uncut, whole

ONE_IN = 100
"""A layer that keeps one in so many of its weights, or fewer, gets its thresholds set back."""


def formula(
    weight: Tensor,
    threshold: Tensor,
    smallest: float,
    out: Tensor,
    channel_dims: Sequence[int],
    groups: int,
    *grouping: Any,
) -> None:
    """``ŵ``; every weight is above a negative threshold, which is inactive."""
    layout = Layout(tuple(channel_dims), groups)
    view, result = (channel_view(tensor, layout)[0] for tensor in (weight, out))
    of_groups = channel_view(magnitudes(weight, *grouping), layout)[0] if grouping else None
    hard(view, active_bound(threshold, smallest), result, of_groups)


def step_derivative(x: Tensor) -> Tensor:
    """The long-tailed estimate ``S'``."""
    distance = x.abs()
    near = 2.0 - 4.0 * distance
    far = torch.where(distance <= 1.0, 0.4, 0.0)
    return torch.where(distance <= 0.4, near, far)


def gradient(
    grad: Tensor,
    weight: Tensor,
    threshold: Tensor,
    channel_dims: Sequence[int],
    groups: int,
    *grouping: Any,
) -> tuple[Tensor, Tensor]:
    """With respect to weight and thresholds; straight through where a threshold is inactive."""
    layout = Layout(tuple(channel_dims), groups)
    view, others = channel_view(weight, layout)
    upstream = channel_view(grad, layout)[0]
    found = None if grouping else kernels.gradient(Rule.TAILS, upstream, view, threshold)
    if found is not None:
        threshold_grad = -found[1].sum(others, keepdim=True)
        return found[0].reshape(weight.shape), threshold_grad.to(threshold.dtype)
    magnitude = channel_view(magnitudes(weight, *grouping), layout)[0]
    slope = step_derivative(magnitude - threshold).masked_fill_(threshold < 0, 0.0)
    if grouping:
        direction = unit(weight, magnitude.reshape(weight.shape))
        means = direction * group_means(grad * direction, *grouping)
        through = magnitude * slope * channel_view(means, layout)[0]
        weight_grad = (upstream * (magnitude > threshold) + through).to(grad.dtype)
    else:
        weight_grad = upstream * ((magnitude > threshold) + magnitude * slope)
    # In this order, products of two tensors in half precision are not rounded to it.
    threshold_grad = -(upstream * (view * slope)).sum(others, keepdim=True)
    return weight_grad.reshape(weight.shape), threshold_grad.to(threshold.dtype)


OPERATOR = ops.define(
    "trained_threshold",
    f"int[] channel_dims, int groups, {SCHEMA}",
    Formula(formula, own=2, by_channel=True),
    gradient,
)


@dataclass(frozen=True)
class DST(LearnedMethod):
    """Dynamic sparse training; convolution, linear and recurrent weights alike.

    Attributes:
        alpha: Weight of the penalty that drives thresholds up: larger is sparser. The paper uses
            1e-6 to 5e-4.
        granularity: What is pruned together; not N of M.

    Raises:
        MethodError: For a negative ``alpha``.
    """

    alpha: float = 5e-6

    name: ClassVar[str] = "dst"
    operator: ClassVar[ops.Operator] = OPERATOR

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.alpha < float("inf"):
            raise MethodError(f"DST(alpha={self.alpha}): give 0 or more, for example 5e-6")

    def threshold(self, site: Site, weight: Tensor) -> Tensor:
        """``t``: one for each output channel."""
        return per_channel(site, weight, INACTIVE)

    def trial(self, site: Site, weight: Tensor) -> Tensor:
        """The mean magnitude, for every channel."""
        mean = self.mean_magnitude(site, weight).item()
        return per_channel(site, weight, mean).detach()

    def constants(self, site: Site) -> tuple[Any, ...]:
        """Output-channel layout."""
        return (list(site.layout.channel_dims), site.layout.groups)

    def penalty(self, threshold: Tensor) -> Tensor:
        """``α · Σ exp(−t)``; constant while inactive."""
        # Not clamp, whose gradient at 0, where thresholds start, is 0 in some releases of torch.
        return self.alpha * torch.exp(-threshold.masked_fill(threshold < 0, 0.0)).sum()

    def after_step(self, weight: Tensor, threshold: nn.Parameter, site: Site) -> None:
        """``t ≥ 0``, and back to 0 in a layer that is all but empty."""
        own = local(threshold)
        own.clamp_min_(0.0)
        if not isinstance(weight, DTensor) and self.granularity == Unstructured():
            view = channel_view(weight.detach(), site.layout)[0]
            count = kernels.left(view, own.detach())
            if count is not None:
                own.mul_(count * ONE_IN > weight.numel())
                return
        # Where weights are sharded, each process counts its own: the thresholds are small.
        shape = channel_view(torch.empty(weight.shape, device="meta"), site.layout)[0].shape
        bound = whole(threshold).expand(shape).reshape(weight.shape)
        constants = self.granularity.constants(site)
        weight = uncut(weight, constants)
        own_magnitudes = magnitudes(local(weight), *constants)
        kept = spread_of(weight).total((own_magnitudes > local_part(bound, weight)).sum())
        own.mul_(kept * ONE_IN > weight.numel())
