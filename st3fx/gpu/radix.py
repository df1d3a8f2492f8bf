"""The exact global threshold on a GPU: radix selection over the bits of the scores.

The bits of floats ≥ 0 order as the floats do. Three passes count scores by their first 11, next 10
and last 10 bits, each among those that share the bits found before; a fourth finds the next larger
score. Everything between is arithmetic on tensors of a few kilobytes: the host waits for nothing,
and sharded weights need only the counts summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from st3fx.gpu.chunks import CHUNK

_BLOCK = 2048
_LARGEST = 0x7FFFFFFF


@triton.jit  # type: ignore[untyped-decorator]
def _count_kernel(
    table: Any,
    prefix: Any,
    counts: Any,
    ABOVE: tl.constexpr,  # bits that were found before are those from here on
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = table + 4 * tl.program_id(0)
    pointer = tl.load(row).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 1)
    scale = tl.load(row + 3).to(tl.int32).to(tl.float32, bitcast=True)
    wanted = tl.load(prefix)
    bins = tl.arange(0, BINS)
    found = tl.zeros([BINS], dtype=tl.int32)
    for start in range(0, SIZE, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < size
        weight = tl.load(pointer + offsets, mask=inside, other=0.0)
        bits = tl.div_rn(tl.abs(weight), scale).to(tl.int32, bitcast=True)
        # In two steps: a shift by 31 is the whole number, and by 32 none.
        inside = inside & ((bits >> ABOVE) == wanted)
        found += tl.histogram((bits >> SHIFT) & (BINS - 1), BINS, mask=inside)
    tl.atomic_add(counts + bins, found.to(tl.int64) * tl.load(row + 2), mask=found > 0)


@triton.jit  # type: ignore[untyped-decorator]
def _next_kernel(
    table: Any, score: Any, result: Any, SIZE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = table + 4 * tl.program_id(0)
    pointer = tl.load(row).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 1)
    scale = tl.load(row + 3).to(tl.int32).to(tl.float32, bitcast=True)
    floor = tl.load(score)
    best = tl.full([BLOCK], 0x7FFFFFFF, dtype=tl.int32)
    for start in range(0, SIZE, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        weight = tl.load(pointer + offsets, mask=offsets < size, other=0.0)
        bits = tl.div_rn(tl.abs(weight), scale).to(tl.int32, bitcast=True)
        best = tl.minimum(best, tl.where((offsets < size) & (bits > floor), bits, 0x7FFFFFFF))
    tl.atomic_min(result, tl.min(best, axis=0))


Reduce = Callable[[Tensor, str], None]
"""Combines a tensor over processes in place, by ``"sum"`` or ``"min"``."""


def select(table: Tensor, need: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """The smallest score up to which all scores cost ``need``, as bits, and that cost.

    Args:
        table: Of :func:`st3fx.gpu.chunks.chunk_table`.
        need: 1 or more.
        reduce: Over the processes that hold other parts.

    Returns:
        0-dimensional int32 and int64 tensors on the device.
    """
    device = table.device
    prefix = torch.zeros((), dtype=torch.int32, device=device)
    missing = torch.full((), need, dtype=torch.int64, device=device)
    upto = torch.zeros((), dtype=torch.int64, device=device)
    for above, shift, width in ((31, 20, 11), (20, 10, 10), (10, 0, 10)):
        counts = torch.zeros(1 << width, dtype=torch.int64, device=device)
        _count_kernel[(len(table),)](
            table, prefix, counts, above, shift, 1 << width, CHUNK, _BLOCK
        )
        reduce(counts, "sum")
        cumulative = counts.cumsum(0)
        index = torch.searchsorted(cumulative, missing).clamp_max((1 << width) - 1)
        below = cumulative[index] - counts[index]
        missing = missing - below
        upto = upto + below
        prefix = (prefix << width) | index.to(torch.int32)
        last = counts[index]
    return prefix, upto + last


def next_score(table: Tensor, score: Tensor, reduce: Reduce) -> Tensor:
    """The bits of the smallest score above ``score`` (bits too); the largest int if none is."""
    result = torch.full((), _LARGEST, dtype=torch.int32, device=table.device)
    _next_kernel[(len(table),)](table, score, result, CHUNK, _BLOCK)
    reduce(result, "min")
    return result


def quantile(table: Tensor, total: int, fraction: float, reduce: Reduce) -> Tensor:
    """The linear quantile of all scores; see :mod:`st3fx.threshold`.

    Args:
        table: Of :func:`st3fx.gpu.chunks.chunk_table`, with costs of 1.
        total: Scores in all processes.
        fraction: Above 0 and below 1.
        reduce: Over the processes that hold other parts.

    Returns:
        0-dimensional fp32 tensor on the device.
    """
    index = (total - 1) * fraction
    rank = math.floor(index)
    bits, upto = select(table, rank + 1, reduce)
    low = bits.view(torch.float32)
    if index == rank:
        return low
    above = next_score(table, bits, reduce)
    high = torch.where(upto >= rank + 2, bits, above).view(torch.float32)
    return low + (high - low) * (index - rank)
