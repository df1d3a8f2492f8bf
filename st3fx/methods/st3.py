r"""ST-3 and ST-3σ: soft threshold, rescaling, straight-through gradients (arXiv 2212.01076).

Symbols: ``w`` latent weight, ``θ`` layer threshold, ``m = |w| > θ``, ``k`` output channel.

    ρ_k = (mean(|w|·m) + 1e-6) / (mean|w| + 1e-6)      share of the channel's magnitude kept
    c_k = 1.01 / (ρ_k + 0.01)                          rescaling
    ŵ   = c_k · (w − sign(w)·θ) · m                    effective weight
    ∂L/∂w := ∂L/∂ŵ                                     straight through, pruned weights included

The rescaling's constants are those of the method's public code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from st3fx import gpu, ops
from st3fx.errors import MethodError
from st3fx.formula import Formula, Inputs, Job
from st3fx.functional import channel_view, is_inactive, smallest_threshold, soft, zero_up_to_
from st3fx.methods.base import ScheduledMethod
from st3fx.sites import Layout, Site

_RHO_EPS = 1e-6
_SCALE_EPS = 0.01


def rescale_factor(weight: Tensor, bound: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``c_k`` for each output channel of ``weight``, reduced over ``dims`` (kept as size 1)."""
    magnitude = weight.abs()
    total = magnitude.mean(dims, keepdim=True)
    kept = zero_up_to_(magnitude, bound).mean(dims, keepdim=True)
    rho = (kept + _RHO_EPS) / (total + _RHO_EPS)
    return (1 + _SCALE_EPS) / (rho + _SCALE_EPS)


def formula(
    weight: Tensor,
    threshold: Tensor,
    smallest: float,
    out: Tensor,
    channel_dims: Sequence[int],
    groups: int,
    rescale: bool,
) -> None:
    """``ŵ``; a negative ``θ`` is inactive: ``ŵ = w``, bit for bit."""
    if is_inactive(threshold):
        out.copy_(weight)
        return
    bound = threshold.clamp_min(smallest)
    soft(weight, bound, out)
    if rescale:
        layout = Layout(tuple(channel_dims), groups)
        view, dims = channel_view(weight, layout)
        scaled = channel_view(out, layout)[0]
        # 0 + ŵ·c, in one pass: the sum makes negative zeros positive.
        torch.addcmul(out.new_zeros(1), scaled, rescale_factor(view, bound, dims), out=scaled)
    else:
        out.add_(0.0)
    if threshold.device.type != "cpu":
        torch.where(threshold < 0, weight, out, out=out)


def on_gpu(jobs: Sequence[Job]) -> list[Job]:
    """One launch for all sites that the kernel fits; the others."""
    devices = {job.inputs.weight.device for job in jobs}
    if len(devices) > 1 or not gpu.available(devices.pop()):
        return list(jobs)
    from st3fx.gpu import soft as kernel  # noqa: PLC0415 (Triton is not everywhere)

    fitting, rest = [], []
    for job in jobs:
        _, weight, threshold, _, (channel_dims, groups, rescale) = job.inputs
        if kernel.fits(weight, channel_dims, groups) and threshold.dtype == torch.float32:
            fitting.append(kernel.Channels(weight, threshold, job.out, rescale))
        else:
            rest.append(job)
    if fitting:
        kernel.soft_threshold(fitting, smallest_threshold(torch.float32))
    return rest


FORMULA = Formula(formula, on_gpu)
OP = ops.define("soft_threshold", "int[] channel_dims, int groups, bool rescale", FORMULA)


def effective_weight(weight: Tensor, threshold: Tensor, layout: Layout, rescale: bool) -> Tensor:
    """``ŵ`` of one weight, without gradient.

    Args:
        weight: Latent weight ``w``, any floating dtype; computed in at least fp32.
        threshold: ``θ``, 0-dimensional, on the weight's device; negative means inactive.
        layout: Where the output channels of ``weight`` lie.
        rescale: Whether to multiply by ``c_k``.

    Returns:
        A new tensor with the shape, dtype and device of ``weight``.
    """
    out = torch.empty_like(weight, requires_grad=False)
    constants = (layout.channel_dims, layout.groups, rescale)
    Inputs(FORMULA, weight, threshold, torch.empty(0), constants).evaluate(out)
    return out


@dataclass(frozen=True)
class ST3(ScheduledMethod):
    """Straight-through soft thresholding with one global threshold.

    Attributes:
        sparsity: Final sparsity over all sites, 0 ≤ sparsity < 1.
        normalize: ``None`` compares magnitudes as they are (ST-3); ``"sigma"`` divides those of a
            layer by ``σ_l = 1/√(Σ dims of its weight)`` (ST-3σ).
        rescale: Whether output channels are rescaled to the magnitude that they had.
        schedule: The sparsity over training.
        budget: What the sparsity is a share of: ``"weights"`` or ``"macs"``.

    Raises:
        MethodError: For values outside these.
    """

    normalize: Literal["sigma"] | None = None
    rescale: bool = True

    name: ClassVar[str] = "st3"
    op: ClassVar[ops.Op] = OP
    formula: ClassVar[Formula] = FORMULA

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize not in (None, "sigma"):
            raise MethodError(f"ST3(normalize={self.normalize!r}): give None or 'sigma'")

    def constants(self, site: Site) -> tuple[Any, ...]:
        """Output-channel layout and the rescaling flag."""
        return (list(site.layout.channel_dims), site.layout.groups, self.rescale)

    def scale(self, site: Site) -> float:
        """``σ_l``."""
        return 1.0 if self.normalize is None else 1.0 / math.sqrt(sum(site.shape))
