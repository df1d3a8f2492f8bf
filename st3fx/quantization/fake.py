"""Fake quantization: numbers rounded as the file of integers rounds them, with gradients.

An activation ``x`` with scale ``s`` and zero point ``z`` becomes
``s · (clip(round(x/s) + z, 0, 255) − z)``. Rounding passes the gradient straight through (Bengio et
al. 2013); what is cut off gets none. The scale learns as in "Learned Step Size Quantization" (Esser
et al., ICLR 2020, https://arxiv.org/abs/1902.08153): its gradient is ``round(x/s) − x/s`` inside
the range and ``−z`` or ``255 − z`` beyond, times ``1/√(255 n)`` for the ``n`` values of one sample.

A weight becomes ``s · round(w/s)`` with one ``s`` for each output channel, a bias likewise with the
scale of the products. Both pass their gradients straight through and nothing is cut off: these
scales follow the weights (``channel_scales``), and have no gradients of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

HIGHEST = 255
"""Of a uint8."""


class _FakeActivation(torch.autograd.Function):
    """The activation's rounding and its two gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: int) -> Tensor:
        """Round ``x``; ``scale`` has one element."""
        ctx.save_for_backward(x, scale)
        ctx.zero = zero
        # In place: these passes are what the training is slower by.
        return (x / scale).round_().clamp_(-zero, HIGHEST - zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Gradients of ``x`` and of the scale."""
        (x, scale), (grad,) = ctx.saved_tensors, grads
        ratio = x / scale
        steps = ratio.round()
        inside = (steps >= -ctx.zero) & (steps <= HIGHEST - ctx.zero)
        of_scale = None
        if ctx.needs_input_grad[1]:
            steps.clamp_(-ctx.zero, HIGHEST - ctx.zero).addcmul_(ratio, inside, value=-1)
            weight = 1 / math.sqrt(HIGHEST * max(1, x.numel() // max(1, len(x))))
            of_scale = (weight * (grad * steps).sum()).reshape(scale.shape)
        return grad * inside, of_scale, None


class _StraightThrough(torch.autograd.Function):
    """Other values, the same gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        """The values."""
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient."""
        return grads[0], None


def fake_activation(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    """Round an activation, samples first.

    Args:
        x: Real numbers.
        scale: Step, one positive number.
        zero: The integer that stands for 0.
    """
    rounded: Tensor = _FakeActivation.apply(x, scale, zero)
    return rounded


def fake_weight(
    w: Tensor, mask: Tensor, floor: Tensor, axis: int, weight_range: str
) -> tuple[Tensor, Tensor]:
    """Round a weight where its mask is one; elsewhere it is zero, and gets no gradient.

    Args:
        w: The latent weight.
        mask: Its shape, true where it may be other than zero.
        floor: The least scale of each channel.
        axis: Dimension of its output channels.
        weight_range: ``safe`` or ``full``.

    Returns:
        The rounded weight, and its scales.
    """
    kept = w * mask
    steps, scales = weight_steps(kept, floor, axis, weight_range)
    return _StraightThrough.apply(kept, steps * scales), scales


@torch.no_grad()
def weight_steps(w: Tensor, floor: Tensor, axis: int, weight_range: str) -> tuple[Tensor, Tensor]:
    """Integers of a weight, as real numbers, and their scales, which broadcast against it.

    Args:
        w: With its zeros.
        floor: The least scale of each channel.
        axis: Dimension of its output channels.
        weight_range: ``safe`` or ``full``.
    """
    scales = torch.maximum(channel_scales(w, axis, weight_range), floor)
    scales = scales.reshape([-1 if dim == axis else 1 for dim in range(w.dim())])
    return (w / scales).round_().clamp_(-127, 127), scales


def fake_bias(b: Tensor, scale_x: Tensor, scale_w: Tensor, factor: Tensor) -> Tensor:
    """Round a bias to the scale of the products, which it is added to as an int32.

    Args:
        b: One number for each output channel.
        scale_x: Of the activation.
        scale_w: Of the weight, in any shape.
        factor: Of what the quantizer made of their product.
    """
    steps, scales = bias_steps(b, scale_x, scale_w, factor)
    rounded: Tensor = _StraightThrough.apply(b, (steps * scales).to(b))
    return rounded


@torch.no_grad()
def bias_steps(
    b: Tensor, scale_x: Tensor, scale_w: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Integers of a bias, in float64, which holds them all, and scales: see :func:`fake_bias`."""
    scales = scale_x * scale_w.reshape(-1) * factor
    bound = 2.0**31 - 1
    return (b.double() / scales).round_().clamp_(-bound, bound), scales


@torch.no_grad()
def channel_scales(w: Tensor, axis: int, weight_range: str) -> Tensor:
    """One scale for each output channel: see ``st3fx.quantization.qdq.weight_scales``."""
    rows = w.movedim(axis, 0).double()
    if rows.dim() > 2:
        rows = rows.movedim(1, -1)  # input channels inside, taps outside
    rows = rows.reshape(len(rows), -1)
    scales = rows.abs().amax(1) / 127
    if weight_range == "safe":
        pairs = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2)).reshape(len(rows), -1, 2)
        above, below = pairs.clamp(min=0).sum(2), (-pairs).clamp(min=0).sum(2)
        # Both may be rounded up, by a half each.
        scales = torch.maximum(scales, torch.maximum(above, below).amax(1) / 127)
    live = scales >= torch.finfo(torch.float32).tiny
    # Without any, a fine one: what a bias is too large for, the quantizer makes larger.
    mean = torch.where(live, scales, 0).sum() / live.sum().clamp(min=1)
    mean = torch.where(live.any(), mean, 2.0**-14)
    return torch.where(live, scales, mean).float()
