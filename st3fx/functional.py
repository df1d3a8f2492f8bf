r"""The mathematics of ST-3 on tensors, and its operator for graphs.

Symbols (ST-3, arXiv 2212.01076): ``w`` latent weight, ``θ`` layer threshold, ``m = |w| > θ``,
``k`` output channel.

    ρ_k = (mean(|w|·m) + 1e-6) / (mean|w| + 1e-6)      share of the channel's magnitude kept
    c_k = 1.01 / (ρ_k + 0.01)                          rescaling
    ŵ   = c_k · (w − sign(w)·θ) · m                    effective weight
    ∂L/∂w := ∂L/∂ŵ                                     straight through, pruned weights included

``w − clamp(w, −θ, θ)`` is the soft threshold without a mask and without a negative zero. A negative
``θ`` means inactive: ``ŵ = w``, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from st3fx.sites import Layout

INACTIVE = -1.0
"""Value of a layer threshold before the first update: the effective weight is the latent one."""

_RHO_EPS = 1e-6
_SCALE_EPS = 0.01


def smallest_threshold(dtype: torch.dtype) -> float:
    """The smallest active threshold: with it, no effective weight is denormal.

    Two floats of magnitude ≥ b differ by at least ``b·eps/2``; with ``b = 2·tiny/eps`` of the dtype
    computed in (fp32 for bf16) that is a normal number, about 2e-31 in fp32. In fp16 denormals are
    part of the working range and stay.
    """
    if dtype == torch.float16:
        return 0.0
    info = torch.finfo(torch.promote_types(dtype, torch.float32))
    return 2 * info.tiny / info.eps


def channel_view(weight: Tensor, layout: Layout) -> tuple[Tensor, tuple[int, ...]]:
    """``weight`` as a view whose output channels are whole dimensions, and the other dimensions.

    Args:
        weight: Any shape that ``layout`` describes.
        layout: Where the output channels lie.

    Returns:
        The view and the dimensions to reduce over for one value per output channel.
    """
    view = weight.unflatten(0, (layout.groups, -1)) if layout.groups > 1 else weight
    return view, tuple(dim for dim in range(view.dim()) if dim not in layout.channel_dims)


def rescale_factor(weight: Tensor, bound: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``c_k`` for each output channel of ``weight``, reduced over ``dims`` (kept as size 1)."""
    magnitude = weight.abs()
    total = magnitude.mean(dims, keepdim=True)
    kept = magnitude.masked_fill_(magnitude <= bound, 0.0).mean(dims, keepdim=True)
    rho = (kept + _RHO_EPS) / (total + _RHO_EPS)
    return (1 + _SCALE_EPS) / (rho + _SCALE_EPS)


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
    dtype = torch.promote_types(weight.dtype, torch.float32)
    latent = weight.to(dtype)
    level = threshold.to(dtype)
    bound = level.clamp_min(smallest_threshold(weight.dtype))
    soft = latent - latent.clamp(-bound, bound)
    if rescale:
        view, dims = channel_view(latent, layout)
        channel_view(soft, layout)[0].mul_(rescale_factor(view, bound, dims))
    return torch.where(level < 0, latent, soft).to(weight.dtype)


torch.library.define(
    "st3fx::soft_threshold",
    "(Tensor weight, Tensor threshold, int[] channel_dims, int groups, bool rescale) -> Tensor",
)


@torch.library.impl("st3fx::soft_threshold", "CompositeExplicitAutograd")
def _soft_threshold(
    weight: Tensor, threshold: Tensor, channel_dims: list[int], groups: int, rescale: bool
) -> Tensor:
    effective = effective_weight(weight, threshold, Layout(tuple(channel_dims), groups), rescale)
    if torch.is_inference_mode_enabled():  # the autograd kernel below is not called there
        effective.requires_grad_(weight.requires_grad)
    return effective


@torch.library.register_fake("st3fx::soft_threshold")  # type: ignore[untyped-decorator]
def _soft_threshold_fake(
    weight: Tensor, threshold: Tensor, channel_dims: list[int], groups: int, rescale: bool
) -> Tensor:
    return torch.empty_like(weight)


class _StraightThrough(_SingleLevelFunction):
    """``∂L/∂w := ∂L/∂ŵ``; nothing is saved.

    Single-level, because it runs below the dispatcher: torch.func's transforms are already peeled
    off when its kernel is called.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.st3fx.soft_threshold.default(*args)
            return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grad, None, None, None, None


@torch.library.impl("st3fx::soft_threshold", "Autograd")
def _soft_threshold_autograd(*args: Any) -> Tensor:
    weight: Tensor = args[0]
    if torch.is_grad_enabled():
        with enable_single_level_autograd_function():
            result: Tensor = _StraightThrough.apply(*args)  # type: ignore[attr-defined]
            return result
    with torch._C._AutoDispatchBelowAutograd():
        effective: Tensor = torch.ops.st3fx.soft_threshold.default(*args)
    # Without gradients too, kernels ask whether a weight requires them (matmul folds its batch
    # then): the effective weight must answer as the parameter does.
    return effective.requires_grad_(weight.requires_grad)


def soft_threshold(weight: Tensor, threshold: Tensor, layout: Layout, rescale: bool) -> Tensor:
    """:func:`effective_weight` with the straight-through gradient; saves nothing for backward."""
    op = torch.ops.st3fx.soft_threshold
    result: Tensor = op(weight, threshold, layout.channel_dims, layout.groups, rescale)
    return result
