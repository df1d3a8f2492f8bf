"""Which tensors the kernels of a training step take, and what they make of them.

A kernel works on memory: on plain fp32 tensors of a CPU, each in one piece, that lie in the same
way. It gives the same bits as torch's operators, which do the same in several passes, and for other
tensors. So does each gradient rule, but where its result has a gradient of its own, or is traced.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from st3fx.native import latent
from st3fx.native.latent import Rows, Rule
from st3fx.tensors import in_memory_order


class Weights:
    """Weights that are compared with thresholds, as a kernel takes them.

    Attributes:
        rows: What the kernels are given.
        held: The tensors whose memory that is.
    """

    def __init__(self, rows: Rows, *held: Tensor) -> None:
        self.rows, self.held = rows, held


def rows(weight: Tensor, threshold: Tensor, *others: Tensor) -> Weights | None:
    """A weight with its thresholds and the tensor to be written; ``None`` if no kernel fits.

    Args:
        weight: Any tensor.
        threshold: Broadcasts with it: one, or one for each row of its first dimensions.
        others: Of the weight's shape. The first one is written to.
    """
    if not all(map(_is_plain, (weight, threshold, *others))) or not latent.available():
        return None
    if not weight.numel() or any(
        other.shape != weight.shape or other.stride() != weight.stride() for other in others
    ):
        return None
    addresses = weight.data_ptr(), others[0].data_ptr() if others else 0, weight.numel()
    if threshold.numel() == 1:
        if not in_memory_order(weight).is_contiguous():
            return None
        return Weights(Rows(*addresses, threshold=threshold.item()))
    dims = next((d for d in range(threshold.dim(), 0, -1) if threshold.shape[d - 1] > 1), 0)
    by_row = threshold.dim() == weight.dim() and threshold.shape[:dims] == weight.shape[:dims]
    if not by_row or not weight.is_contiguous():
        return None
    own = threshold.detach().contiguous()
    length = weight.numel() // own.numel()
    return Weights(Rows(*addresses, length=length, thresholds=own.data_ptr()), own)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_neg()
        and not is_functorch_wrapped_tensor(tensor)
    )


def hard_threshold(weights: Weights) -> None:
    """Write what is above its threshold, else a positive zero."""
    latent.hard_threshold([weights.rows])


def soft_threshold(weight: Tensor, bound: Tensor, out: Tensor) -> bool:
    """Write ``sign(w)·max(|w| − θ, 0)``, zeros positive; whether a kernel fits.

    Args:
        weight: The weight.
        bound: ``θ``, one number.
        out: Of the weight's shape.
    """
    found = rows(weight, bound, out)
    if found is None or found.rows.thresholds:
        return False
    memory, size = found.rows[:2], weight.numel()
    length = _divisor(size)
    latent.soft_threshold(
        [latent.Channels(*memory, size // length, length, found.rows.threshold, False)]
    )
    return True


@functools.lru_cache(maxsize=1024)
def _divisor(size: int) -> int:
    """Of how many numbers equal parts are, for threads to share."""
    return next(n for n in range(min(size, 1 << 12), 0, -1) if size % n == 0)


def left(weight: Tensor, threshold: Tensor) -> Tensor | None:
    """How many weights are above their thresholds, 0-dimensional; ``None`` if no kernel fits."""
    weights = rows(weight, threshold)
    return None if weights is None else torch.tensor(latent.left([weights.rows])[0])


def gradient(
    rule: Rule, grad: Tensor, weight: Tensor, threshold: Tensor, *, factor: float = 0.0
) -> tuple[Tensor, Tensor] | None:
    """The gradient of a weight, and what that of its threshold is a sum of.

    Args:
        rule: How. What :attr:`Rule.SCALE` has of a threshold is empty.
        grad: Of the effective weight.
        weight: The weight.
        threshold: As for :func:`rows`.
        factor: Of the gradient of pruned weights, for :attr:`Rule.SCALE`.

    Returns:
        New tensors; ``None`` if no kernel fits.
    """
    if torch.is_grad_enabled() or _get_current_dispatch_mode() is not None:
        return None
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return None
    if not _is_plain(grad) or not _is_plain(weight):
        return None
    out = torch.empty_like(weight, requires_grad=False)
    weights = rows(weight, threshold, out, grad)
    if weights is None:
        return None
    along = out.new_empty(0) if rule is Rule.SCALE else torch.empty_like(out)
    latent.gradient(
        rule, weights.rows, grad.data_ptr(),
        along=along.data_ptr() if along.numel() else 0, factor=factor,
    )  # fmt: skip
    return out, along


def power_threshold(weight: Tensor, bound: Tensor, p: float, out: Tensor) -> bool:
    """Write ``w · (1 − (θ/|w|)^p)^(1/p)`` where ``|w| > θ``, else a positive zero.

    Powers, which cost most, are computed for the weights that are left alone.

    Args:
        weight: The weight.
        bound: ``θ``, of no dimensions.
        p: 1 or more.
        out: Of the weight's shape.

    Returns:
        Whether a kernel fits.
    """
    found = rows(weight, bound, out)
    if found is None:
        return False
    whole = weight.numel() - weight.numel() % _STEP
    # torch computes powers of the last few numbers of a tensor by another function.
    unit = _STEP * torch.get_num_threads()
    room = torch.empty(whole + unit + 1)
    part = found.rows._replace(size=whole)
    count, starts = latent.gather(part._replace(out=room.data_ptr()))
    end = -(-count // unit) * unit
    room[count : end + 1] = 1.0
    powers(room[:end], p)
    latent.scatter(part, starts, room.data_ptr())
    if whole < weight.numel():
        flat, result = (in_memory_order(t.detach()).reshape(-1)[whole:] for t in (weight, out))
        ratio = bound / flat.abs().clamp_min_(bound)
        torch.mul(flat, powers(ratio, p), out=result).add_(0.0)
    return True


_STEP = 64
"""A multiple of how many numbers torch's vectors have, whatever the CPU."""


def powers(ratio: Tensor, p: float) -> Any:
    """``(1 − r^p)^(1/p)``, in place."""
    return ratio.pow_(p).neg_().add_(1.0).pow_(1.0 / p)
