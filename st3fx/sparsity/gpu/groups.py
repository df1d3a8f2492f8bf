"""Groups of weights on a GPU: their magnitudes, and ST-3's effective weights of them.

One program takes many short groups side by side, a lane for each, and adds squares in the order of
the weights, as the kernel library does. See :mod:`st3fx.sparsity.granularity` for the mathematics
and :mod:`st3fx.methods.st3` for the formula.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from st3fx.native.latent import Groups
from st3fx.sparsity.gpu.soft import Channels

_LANES = 128
_BLOCK = 1024

_LARGEST = tl.constexpr(3.4028234663852886e38)
_SMALLEST_SUM = tl.constexpr(2.0**-100)
_NORMAL = tl.constexpr(2.0**-126)


@triton.jit  # type: ignore[untyped-decorator]
def _goes(
    weight: tl.tensor,
    count: tl.tensor,
    inner: tl.tensor,
    inside: tl.tensor,
    own: tl.tensor,
    i: tl.tensor,
    gone: tl.tensor,
    SIZE: tl.constexpr,
) -> Any:
    smaller = tl.zeros_like(count)
    for k in range(SIZE):
        other = tl.abs(tl.load(weight + k * inner, mask=inside & (k < count), other=0.0))
        first = (other < tl.abs(own)) | ((other == tl.abs(own)) & (k > i))
        smaller += (first & (k < count)).to(tl.int32)
    return smaller < gone


@triton.jit  # type: ignore[untyped-decorator]
def _deciding(
    weight: tl.tensor,
    count: tl.tensor,
    inner: tl.tensor,
    inside: tl.tensor,
    own: tl.tensor,
    i: tl.tensor,
    magnitude: tl.tensor,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
) -> Any:
    if KEPT > 0:
        goes = _goes(weight, count, inner, inside, own, i, count - KEPT, SIZE)
        magnitude = tl.where(goes, magnitude, _LARGEST)
    return magnitude


@triton.jit  # type: ignore[untyped-decorator]
def _magnitude(
    weight: tl.tensor,
    count: tl.tensor,
    inner: tl.tensor,
    inside: tl.tensor,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
) -> Any:
    total = tl.zeros(count.shape, dtype=tl.float32)
    exact = tl.zeros(count.shape, dtype=tl.float64)
    for i in range(SIZE):
        own = tl.load(weight + i * inner, mask=inside & (i < count), other=0.0)
        if KEPT > 0:
            own = tl.where(
                _goes(weight, count, inner, inside, own, i, count - KEPT, SIZE), own, 0.0
            )
        total += own * own
        exact += own.to(tl.float64) * own.to(tl.float64)
    among = tl.maximum(count - KEPT, 1)
    root = tl.sqrt_rn(tl.div_rn(total, among.to(tl.float32)))
    large = tl.sqrt(exact / among.to(tl.float64)).to(tl.float32)
    root = tl.where((total >= _SMALLEST_SUM) & (total <= _LARGEST), root, large)
    return tl.where(count > KEPT, root, _LARGEST)


@triton.jit  # type: ignore[untyped-decorator]
def _start(group: tl.tensor, extent: tl.tensor, inner: tl.tensor, SIZE: tl.constexpr) -> Any:
    row_groups = ((extent + SIZE - 1) // SIZE) * inner
    block = group % row_groups // inner
    start = (group // row_groups * extent + block * SIZE) * inner + group % inner
    return start, tl.minimum(extent - block * SIZE, SIZE).to(tl.int32)


@triton.jit  # type: ignore[untyped-decorator]
def _long_magnitude(
    weight: tl.tensor, length: tl.tensor, LONGEST: tl.constexpr, BLOCK: tl.constexpr
) -> Any:
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for first in range(0, LONGEST, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        own = tl.load(weight + offsets, mask=offsets < length, other=0.0).to(tl.float64)
        total += own * own
    return tl.sqrt(tl.sum(total, axis=0) / length.to(tl.float64)).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _measure_kernel(
    weight: tl.tensor,
    out: tl.tensor,
    groups: tl.tensor,
    extent: tl.tensor,
    inner: tl.tensor,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    SPREAD: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    inside = group < groups
    start, count = _start(group, extent, inner, SIZE)
    magnitude = _magnitude(weight + start, count, inner, inside, SIZE, KEPT)
    if SPREAD:
        for i in range(SIZE):
            there = inside & (i < count)
            own = tl.load(weight + start + i * inner, mask=there, other=0.0)
            found = _deciding(weight + start, count, inner, inside, own, i, magnitude, SIZE, KEPT)
            tl.store(out + start + i * inner, found, mask=there)
    else:
        tl.store(out + group, magnitude, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _long_kernel(
    weight: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    SPREAD: tl.constexpr,
    LONGEST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    magnitude = _long_magnitude(weight + row * length, length, LONGEST, BLOCK)
    if SPREAD:
        for first in range(0, LONGEST, BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            there = out + row * length + offsets
            tl.store(there, tl.zeros([BLOCK], tl.float32) + magnitude, mask=offsets < length)
    else:
        tl.store(out + row, magnitude)


def measure(weight: Tensor, out: Tensor, groups: Groups, *, spread: bool) -> None:
    """Write the magnitude of each group, or with ``spread`` of each weight.

    Args:
        weight: fp32, its memory in one piece.
        out: fp32 memory in the order of the weight's: a scalar for each group, or each weight.
        groups: How groups lie in that memory.
        spread: Whether each weight gets its group's magnitude.
    """
    extent, inner, size, kept = groups
    if kept < 0:
        rows, longest = weight.numel() // extent, max(_BLOCK, triton.next_power_of_2(extent))
        _long_kernel[(rows,)](weight, out, extent, spread, longest, _BLOCK)
        return
    number = weight.numel() // extent * -(-extent // size)
    _measure_kernel[(triton.cdiv(number, _LANES),)](
        weight, out, number, extent, inner, size, kept, spread, _LANES, enable_fp_fusion=False
    )


@triton.jit  # type: ignore[untyped-decorator]
def _soft_groups_kernel(
    table: tl.tensor,
    smallest: tl.tensor,
    SIZE: tl.constexpr,
    KEPT: tl.constexpr,
    MOST: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    row = table + 7 * tl.program_id(0).to(tl.int64)
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    out = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    threshold = tl.load(tl.load(row + 2).to(tl.pointer_type(tl.float32)))
    length, rescale = tl.load(row + 3), tl.load(row + 4)
    extent, inner = tl.load(row + 5), tl.load(row + 6)
    groups = length // extent * ((extent + SIZE - 1) // SIZE)
    bound = tl.maximum(threshold, smallest)
    total = tl.zeros([LANES], dtype=tl.float32)
    kept = tl.zeros([LANES], dtype=tl.float32)
    for first in range(0, MOST, LANES):
        group = first + tl.arange(0, LANES)
        inside = group < groups
        start, count = _start(group, extent, inner, SIZE)
        here = weight + start
        magnitude = _magnitude(here, count, inner, inside, SIZE, KEPT)
        for i in range(SIZE):
            own = tl.load(here + i * inner, mask=inside & (i < count), other=0.0)
            found = _deciding(here, count, inner, inside, own, i, magnitude, SIZE, KEPT)
            total += tl.abs(own)
            kept += tl.where(found > bound, tl.abs(own), 0.0)
    scalars = length.to(tl.float32)
    rho = (tl.sum(kept, axis=0) / scalars + 1e-6) / (tl.sum(total, axis=0) / scalars + 1e-6)
    factor = tl.where(rescale != 0, 1.01 / (rho + 0.01), 1.0)
    for first in range(0, MOST, LANES):
        group = first + tl.arange(0, LANES)
        inside = group < groups
        start, count = _start(group, extent, inner, SIZE)
        here = weight + start
        magnitude = _magnitude(here, count, inner, inside, SIZE, KEPT)
        for i in range(SIZE):
            there = inside & (i < count)
            own = tl.load(here + i * inner, mask=there, other=0.0)
            found = _deciding(here, count, inner, inside, own, i, magnitude, SIZE, KEPT)
            over = found - bound
            soft = tl.div_rn(over, tl.where(found > 0.0, found, 1.0)) * own * factor
            soft = tl.where(over <= 0.0, 0.0, tl.where(tl.abs(soft) < _NORMAL, 0.0, soft))
            tl.store(out + start + i * inner, tl.where(threshold < 0.0, own, soft), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _soft_long_kernel(
    table: tl.tensor, smallest: tl.tensor, LONGEST: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = table + 7 * tl.program_id(0).to(tl.int64)
    weight = tl.load(row).to(tl.pointer_type(tl.float32))
    out = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    threshold = tl.load(tl.load(row + 2).to(tl.pointer_type(tl.float32)))
    length, rescale = tl.load(row + 3).to(tl.int32), tl.load(row + 4)
    bound = tl.maximum(threshold, smallest)
    magnitude = _long_magnitude(weight, length, LONGEST, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, LONGEST, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        total += tl.abs(tl.load(weight + offsets, mask=offsets < length, other=0.0))
    share = tl.sum(total, axis=0) / length.to(tl.float32) + 1e-6
    over = magnitude - bound
    rho = tl.where(over > 0.0, share, 1e-6) / share
    factor = tl.where(rescale != 0, 1.01 / (rho + 0.01), 1.0)
    ratio = tl.div_rn(over, tl.where(magnitude > 0.0, magnitude, 1.0))
    for first in range(0, LONGEST, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        own = tl.load(weight + offsets, mask=offsets < length, other=0.0)
        soft = ratio * own * factor
        soft = tl.where(over <= 0.0, 0.0, tl.where(tl.abs(soft) < _NORMAL, 0.0, soft))
        tl.store(out + offsets, tl.where(threshold < 0.0, own, soft), mask=offsets < length)


def soft_threshold(jobs: Sequence[tuple[Channels, Groups]], smallest: float) -> None:
    """Write the effective weights of all jobs, in one launch for each kind of groups.

    Args:
        jobs: Sites on one device, with how their groups lie.
        smallest: The smallest active threshold.
    """
    kinds = dict.fromkeys(_kind(groups) for _, groups in jobs)
    for size, kept in kinds:
        own = [(site, groups) for site, groups in jobs if _kind(groups) == (size, kept)]
        places = tuple(
            (
                site.weight.data_ptr(), site.out.data_ptr(), site.threshold.data_ptr(),
                len(site.weight), site.weight.numel() // len(site.weight), int(site.rescale),
                groups.extent, groups.inner,
            )
            for site, groups in own
        )  # fmt: skip
        table = _table(places, own[0][0].weight.device)
        if kept < 0:
            longest = max(_BLOCK, triton.next_power_of_2(max(place[4] for place in places)))
            _soft_long_kernel[(len(table),)](table, smallest, longest, _BLOCK)
            continue
        most = max(place[4] // place[6] * -(-place[6] // size) for place in places)
        most = max(_LANES, triton.next_power_of_2(most))
        _soft_groups_kernel[(len(table),)](
            table, smallest, size, kept, most, _LANES, enable_fp_fusion=False
        )


def _kind(groups: Groups) -> tuple[int, int]:
    """Groups that one launch takes; long ones may have any length."""
    return (0, -1) if groups.kept < 0 else (groups.size, groups.kept)


@functools.lru_cache(maxsize=256)
def _table(places: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """A row for each channel: the addresses, length, rescaling, and its groups' extent and step."""
    rows = []
    for weight, out, threshold, channels, length, rescale, extent, inner in places:
        first = torch.tensor(
            [weight, out, threshold, length, rescale, extent, inner], dtype=torch.int64
        )
        step = torch.tensor([4 * length, 4 * length, 0, 0, 0, 0, 0], dtype=torch.int64)
        rows.append(first + step * torch.arange(channels)[:, None])
    return torch.cat(rows).to(device, non_blocking=True)
