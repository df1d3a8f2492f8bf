"""ST-3's effective weights on a GPU: a program for each output channel, one launch for all sites.

The same program makes a single site's weights and those of a whole model, so that both are equal
bit for bit. See :mod:`st3fx.methods.st3` for the formula.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


class Channels(NamedTuple):
    """One site.

    Attributes:
        weight: fp32, contiguous in memory along all dimensions but the first.
        threshold: 0-dimensional fp32, on the same device.
        out: Like ``weight``.
        rescale: Whether channels are rescaled.
    """

    weight: Tensor
    threshold: Tensor
    out: Tensor
    rescale: bool


@triton.jit  # type: ignore[untyped-decorator]
def _soft_kernel(
    table: tl.tensor, smallest: tl.tensor, LONGEST: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = table + 5 * tl.program_id(0).to(tl.int64)
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    out = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    threshold = tl.load(tl.load(row + 2).to(tl.pointer_type(tl.float32)))
    length = tl.load(row + 3).to(tl.int32)
    rescale = tl.load(row + 4)
    bound = tl.maximum(threshold, smallest)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    kept = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, LONGEST, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        magnitude = tl.abs(tl.load(weight + offsets, mask=offsets < length, other=0.0))
        total += magnitude
        kept += tl.where(magnitude > bound, magnitude, 0.0)
    count = length.to(tl.float32)
    rho = (tl.sum(kept, axis=0) / count + 1e-6) / (tl.sum(total, axis=0) / count + 1e-6)
    factor = tl.where(rescale != 0, 1.01 / (rho + 0.01), 1.0)
    for start in range(0, LONGEST, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        value = tl.load(weight + offsets, mask=offsets < length, other=0.0)
        soft = tl.where(value > bound, value - bound, tl.where(value < -bound, value + bound, 0.0))
        effective = tl.where(soft == 0.0, 0.0, soft * factor)
        effective = tl.where(threshold < 0.0, value, effective)
        tl.store(out + offsets, effective, mask=offsets < length)


def soft_threshold(jobs: Sequence[Channels], smallest: float) -> None:
    """Write the effective weights of all jobs, in one launch.

    Args:
        jobs: Sites on one device.
        smallest: The smallest active threshold.
    """
    places = tuple(
        (
            job.weight.data_ptr(),
            job.out.data_ptr(),
            job.threshold.data_ptr(),
            len(job.weight),
            job.weight.numel() // len(job.weight),
            int(job.rescale),
        )
        for job in jobs
    )
    table = _table(places, jobs[0].weight.device)
    # A power of two, so that few kernels are compiled; shorter channels read nothing beyond theirs.
    longest = triton.next_power_of_2(max(place[4] for place in places))
    _soft_kernel[(len(table),)](table, smallest, max(longest, _BLOCK), _BLOCK)


@functools.lru_cache(maxsize=256)
def _table(places: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """One row a channel: addresses of weight, result and threshold, length, rescaling."""
    rows = []
    for weight, out, threshold, channels, length, rescale in places:
        first = torch.tensor([weight, out, threshold, length, rescale], dtype=torch.int64)
        step = torch.tensor([4 * length, 4 * length, 0, 0, 0], dtype=torch.int64)
        rows.append(first + step * torch.arange(channels)[:, None])
    return torch.cat(rows).to(device, non_blocking=True)
