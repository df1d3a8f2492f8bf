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
from torch import Tensor, nn

from st3fx.errors import MethodError
from st3fx.methods.base import ScheduledMethod
from st3fx.native import latent
from st3fx.plan.sites import Layout, Site
from st3fx.sparsity import gpu, ops
from st3fx.sparsity.formula import (
    Formula,
    Inputs,
    Job,
    channel_view,
    has_dense_channels,
    is_inactive,
    normal,
    smallest_threshold,
    soft,
    zero_up_to_,
)
from st3fx.sparsity.granularity import SCHEMA, Grouping, in_memory, magnitudes

_RHO_EPS = 1e-6
_SCALE_EPS = 0.01


def rescale_factor(
    weight: Tensor, bound: Tensor, dims: tuple[int, ...], deciding: Tensor | None = None
) -> Tensor:
    """``c_k`` for each output channel of ``weight``, reduced over ``dims`` (kept as size 1).

    Args:
        weight: A view whose output channels are whole dimensions.
        bound: The threshold.
        dims: All other dimensions.
        deciding: The magnitudes of groups, in place of ``|w|``; of the view's shape.
    """
    magnitude = weight.abs()
    total = magnitude.mean(dims, keepdim=True)
    if deciding is None:
        magnitude = zero_up_to_(magnitude, bound)
    else:
        magnitude.masked_fill_(deciding <= bound, 0.0)
    kept = magnitude.mean(dims, keepdim=True)
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
    *grouping: Any,
) -> None:
    """``ŵ``; a negative ``θ`` is inactive: ``ŵ = w``, bit for bit."""
    if is_inactive(threshold):
        out.copy_(weight)
        return
    bound = threshold.clamp_min(smallest)
    deciding = magnitudes(weight, *grouping) if grouping else None
    soft(weight, bound, out, deciding)
    if rescale:
        layout = Layout(tuple(channel_dims), groups)
        view, dims = channel_view(weight, layout)
        scaled = channel_view(out, layout)[0]
        of_groups = None if deciding is None else channel_view(deciding, layout)[0]
        factor = rescale_factor(view, bound, dims, of_groups)
        # 0 + ŵ·c, in one pass: the sum makes negative zeros positive.
        torch.addcmul(out.new_zeros(1), scaled, factor, out=scaled)
    else:
        out.add_(0.0)
    if grouping:
        normal(out, out)
    if threshold.device.type != "cpu":
        torch.where(threshold < 0, weight, out, out=out)


def together(jobs: Sequence[Job]) -> list[Job]:
    """All sites that a kernel fits, in one call; gives back the others."""
    fitting: list[Job] = []
    rest: list[Job] = []
    for job in jobs:
        (fitting if _fits(job) else rest).append(job)
    devices = {job.out.device for job in fitting}
    if len(devices) != 1:
        return list(jobs)
    device = devices.pop()
    if gpu.available(device):
        _on_gpu(fitting)
    elif device.type == "cpu" and latent.available():
        _on_cpu(fitting)
    else:
        return list(jobs)
    return rest


def _fits(job: Job) -> bool:
    """Whether the kernels do a site: plain fp32 tensors, each channel in one piece of memory."""
    _, weight, threshold, _, (channel_dims, groups, _, *grouping), _ = job.inputs
    tensors = (weight, threshold, job.out)
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 for t in tensors)
        and weight.device == job.out.device == threshold.device
        and weight.stride() == job.out.stride()
        and has_dense_channels(weight, Layout(tuple(channel_dims), groups))
        and (not grouping or in_memory(weight, Grouping(*grouping)) is not None)
    )


def _on_cpu(jobs: Sequence[Job]) -> None:
    smallest, active = smallest_threshold(torch.float32), []
    for job in jobs:
        _, weight, threshold, _, (_, _, rescale, *grouping), _ = job.inputs
        level = threshold.item()
        if level < 0:
            job.out.copy_(weight)
            continue
        rows, addresses = len(weight), (weight.data_ptr(), job.out.data_ptr())
        length, bound = weight.numel() // rows, max(level, smallest)
        memory = in_memory(weight, Grouping(*grouping)) if grouping else None
        own = memory or latent.Groups()
        active.append(latent.Channels(*addresses, rows, length, bound, rescale, own))
    if active:
        latent.soft_threshold(active)


def _on_gpu(jobs: Sequence[Job]) -> None:
    # Triton is not everywhere.
    from st3fx.sparsity.gpu import groups as of_groups  # noqa: PLC0415
    from st3fx.sparsity.gpu import soft as of_weights  # noqa: PLC0415

    single, grouped, smallest = [], [], smallest_threshold(torch.float32)
    for job in jobs:
        _, weight, threshold, _, (_, _, rescale, *grouping), _ = job.inputs
        site = of_weights.Channels(weight, threshold, job.out, rescale)
        memory = in_memory(weight, Grouping(*grouping)) if grouping else None
        if memory is None:
            single.append(site)
        else:
            grouped.append((site, memory))
    if single:
        of_weights.soft_threshold(single, smallest)
    if grouped:
        of_groups.soft_threshold(grouped, smallest)


FORMULA = Formula(formula, together, own=3, by_channel=True)
OPERATOR = ops.define(
    "soft_threshold", f"int[] channel_dims, int groups, bool rescale, {SCHEMA}", FORMULA
)


def effective_weight(
    weight: Tensor,
    threshold: Tensor,
    layout: Layout,
    rescale: bool,
    grouping: Sequence[Any] = (),
) -> Tensor:
    """``ŵ`` of one weight, without gradient.

    Args:
        weight: Latent weight ``w``, any floating dtype; computed in at least fp32.
        threshold: ``θ``, 0-dimensional, on the weight's device; negative means inactive.
        layout: Where the output channels of ``weight`` lie.
        rescale: Whether to multiply by ``c_k``.
        grouping: Of a :class:`st3fx.sparsity.granularity.Grouping`, or nothing.

    Returns:
        A new tensor with the shape, dtype and device of ``weight``.
    """
    out = torch.empty_like(weight, requires_grad=False)
    constants = (layout.channel_dims, layout.groups, rescale, *grouping)
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
        granularity: What is pruned together. Of a group the root mean square is the magnitude, in
            ``θ`` and ``m`` above, and its weights shrink by one factor, ``1 − θ/‖g‖``.

    Raises:
        MethodError: For values outside these.
    """

    normalize: Literal["sigma"] | None = None
    rescale: bool = True

    name: ClassVar[str] = "st3"
    operator: ClassVar[ops.Operator] = OPERATOR

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
