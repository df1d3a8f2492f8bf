"""The exact global threshold on a GPU: radix selection over the bits of the scores.

The bits of floats ≥ 0 order as the floats do. Three passes count scores by their first 11, next 10
and last 10 bits, each among those that share the bits found before; a fourth finds the next larger
score. Everything between is arithmetic on tensors of a few kilobytes: the host waits for nothing,
and sharded weights need only the counts summed.

A table of pieces of tensors on the device, so that one launch covers all sites.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from st3fx.sparsity.threshold.scan import ScoredSite

CHUNK = 16384
"""Scalars for one program."""


def chunk_table(tensors: Sequence[Tensor], scales: Sequence[float], costs: Sequence[int]) -> Tensor:
    """Pieces of at most :data:`CHUNK` scalars of dense fp32 tensors.

    Returns:
        int64, shape (pieces, 4): address, scalars, cost of one, and the bits of ``σ`` in fp32. Kept
        for as long as the tensors stay where they are.
    """
    places = tuple((tensor.data_ptr(), tensor.numel()) for tensor in tensors)
    return _table(places, tuple(scales), tuple(costs), tensors[0].device)


@functools.lru_cache(maxsize=8)
def _table(
    places: tuple[tuple[int, int], ...],
    scales: tuple[float, ...],
    costs: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    bits = torch.tensor(scales, dtype=torch.float32).view(torch.int32).tolist()
    rows = [
        (address + 4 * start, min(CHUNK, numel - start), cost, scale)
        for (address, numel), cost, scale in zip(places, costs, bits, strict=True)
        for start in range(0, numel, CHUNK)
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4).to(device, non_blocking=True)


_BLOCK = 2048
_LARGEST = 0x7FFFFFFF


@triton.jit  # type: ignore[untyped-decorator]
def _count_kernel(
    table: tl.tensor,
    prefix: tl.tensor,
    counts: tl.tensor,
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
    table: tl.tensor, score: tl.tensor, result: tl.tensor, SIZE: tl.constexpr, BLOCK: tl.constexpr
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


class Group(NamedTuple):
    """Sites whose parts are spread over the same processes.

    Attributes:
        table: Of :func:`st3fx.sparsity.threshold.radix.chunk_table`; may have no rows.
        reduce: Combines a tensor over these processes in place, by ``"sum"`` or ``"min"``.
    """

    table: Tensor
    reduce: Callable[[Tensor, str], None]


def groups_of(sites: Sequence[ScoredSite]) -> list[Group]:
    """Sites, all on one GPU, by the processes that hold the rest of them."""
    groups = []
    for spread in dict.fromkeys(site.spread for site in sites):
        own = [site for site in sites if site.spread == spread]
        held = [site.source.weight for site in own]
        tensors = [weight.detach() for weight in held if isinstance(weight, Tensor)]
        table = chunk_table(tensors, [s.source.scale for s in own], [s.cost for s in own])
        groups.append(Group(table, spread.reduce_tensor))
    return groups


def select(groups: Sequence[Group], need: int) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest score up to which all scores cost ``need``, as bits; that cost; its own cost.

    Args:
        groups: All sites, on one device.
        need: 1 or more.

    Returns:
        0-dimensional int32, int64 and int64 tensors on the device.
    """
    device = groups[0].table.device
    prefix = torch.zeros((), dtype=torch.int32, device=device)
    missing = torch.full((), need, dtype=torch.int64, device=device)
    upto = torch.zeros((), dtype=torch.int64, device=device)
    for above, shift, width in ((31, 20, 11), (20, 10, 10), (10, 0, 10)):
        counts = _count(groups, prefix, above, shift, width)
        cumulative = counts.cumsum(0)
        index = torch.searchsorted(cumulative, missing).clamp_max((1 << width) - 1)
        below = cumulative[index] - counts[index]
        missing = missing - below
        upto = upto + below
        prefix = (prefix << width) | index.to(torch.int32)
    return prefix, upto + counts[index], counts[index]


def _count(groups: Sequence[Group], prefix: Tensor, above: int, shift: int, width: int) -> Tensor:
    """Cost of the scores with these first bits, by their next ``width`` bits."""
    total = torch.zeros(1 << width, dtype=torch.int64, device=prefix.device)
    for table, reduce in groups:
        counts = torch.zeros_like(total)
        if len(table):
            _count_kernel[(len(table),)](
                table, prefix, counts, above, shift, 1 << width, CHUNK, _BLOCK
            )
        reduce(counts, "sum")
        total += counts
    return total


def next_score(groups: Sequence[Group], score: Tensor) -> Tensor:
    """The bits of the smallest score above ``score`` (bits too); the largest int if none is."""
    best = torch.full((), _LARGEST, dtype=torch.int32, device=score.device)
    for table, reduce in groups:
        result = torch.full_like(best, _LARGEST)
        if len(table):
            _next_kernel[(len(table),)](table, score, result, CHUNK, _BLOCK)
        reduce(result, "min")
        best = torch.minimum(best, result)
    return best


def quantile(groups: Sequence[Group], total: int, fraction: float) -> Tensor:
    """The linear quantile of all scores, 0-dimensional fp32 on the device; see :func:`located`."""
    return located(groups, total, fraction)[0]


def located(groups: Sequence[Group], total: int, fraction: float) -> tuple[Tensor, Tensor, Tensor]:
    """The linear quantile of all scores; see :mod:`st3fx.sparsity.threshold.search`.

    Args:
        groups: All sites, with costs of 1.
        total: Scores in all processes.
        fraction: Above 0 and below 1.

    Returns:
        The quantile, 0-dimensional fp32; how many scores there are up to the lower of the two that
        it lies between, and how many are equal to that one, int64. All on the device.
    """
    index = (total - 1) * fraction
    rank = math.floor(index)
    bits, upto, equal = select(groups, rank + 1)
    low = bits.view(torch.float32)
    if index == rank:
        return low, upto, equal
    above = next_score(groups, bits)
    high = torch.where(upto >= rank + 2, bits, above).view(torch.float32)
    return low + (high - low) * (index - rank), upto, equal
