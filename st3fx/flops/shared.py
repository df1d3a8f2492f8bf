"""Costs that both levels share and that are more than a number per scalar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from st3fx.flops.counted import Elementwise
from st3fx.flops.elementwise import CELL, LINEAR_SAMPLE, PER_INPUT, PER_OUTPUT
from st3fx.flops.operand import Operand
from st3fx.flops.taps import all_hits, line_hits

PoolKind = Literal["max_pool", "avg_pool"]


def per_output(op: str, out: Operand) -> list[Elementwise]:
    """So many operations for each scalar of the output; arithmetic on integers is not counted."""
    return [Elementwise(op, PER_OUTPUT[op] * out.numel)] if out.floating else []


def per_input(op: str, x: Operand) -> list[Elementwise]:
    """So many operations for each scalar of the input."""
    return [Elementwise(op, PER_INPUT[op] * x.numel)] if x.floating else []


def bias(added: Operand | None, out: Operand) -> list[Elementwise]:
    """One addition for each scalar of the output where there is a bias."""
    return [] if added is None else per_output("add", out)


def pooling(
    kind: PoolKind,
    x: Operand,
    out: Operand,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Elementwise:
    """A comparison or addition for each real value in each window; an average divides once more.

    Args:
        kind: Which of the two.
        x: (*, *spatial).
        out: (*, *spatial).
        kernel: Window, per spatial dimension.
        stride: Per spatial dimension.
        padding: Positions before the input's first, per spatial dimension.
        dilation: Per spatial dimension.
    """
    dims = len(kernel)
    planes = math.prod(out.shape[:-dims])
    lines = [
        line_hits(
            out.shape[d - dims],
            (0, x.shape[d - dims]),
            kernel=kernel[d],
            stride=stride[d],
            padding=padding[d],
            dilation=dilation[d],
        )
        for d in range(dims)
    ]
    values = planes * sum(all_hits(lines))
    if kind == "max_pool":
        return Elementwise(kind, values)
    return Elementwise(kind, values + out.numel, pooled=math.prod(kernel) * out.numel)


def adaptive_pooling(kind: PoolKind, x: Operand, out: Operand, dims: int) -> Elementwise:
    """As :func:`pooling`, with windows from ``⌊i·in / out⌋`` up to ``⌈(i + 1)·in / out⌉``."""
    values = math.prod(out.shape[:-dims])
    for size, outputs in zip(x.shape[-dims:], out.shape[-dims:], strict=True):
        values *= sum(-(-(i + 1) * size // outputs) - i * size // outputs for i in range(outputs))
    if kind == "max_pool":
        return Elementwise(kind, values)
    return Elementwise(kind, values + out.numel, pooled=values)


def mean(x: Operand, out: Operand, axes: Sequence[int] | None) -> list[Elementwise]:
    """A mean; over all spatial dimensions of images or volumes it is an average pooling."""
    rank = len(x.shape)
    spatial = axes is not None and {axis % rank for axis in axes} == set(range(2, rank))
    if spatial and rank > 3 and x.floating:
        return [Elementwise("avg_pool", x.numel + out.numel, pooled=x.numel)]
    return per_input("mean", x)


def resampling(op: str, out: Operand, sources: int) -> list[Elementwise]:
    """Interpolation: each output value is a weighted sum of so many source values."""
    return [Elementwise(op, LINEAR_SAMPLE * sources * out.numel)]


def recurrent_cell(kind: str, rows: int, hidden: int) -> Elementwise:
    """Gates and states of a recurrent layer, for so many steps of so many sequences."""
    return Elementwise(kind, CELL[kind] * rows * hidden)
