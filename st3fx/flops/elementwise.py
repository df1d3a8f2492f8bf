"""What everything costs that is no MAC, by the names of the report, for ATen and for ONNX.

One operation each: an addition, multiplication, division, comparison or choice of the larger, and a
function of one number (exp, log, erf, tanh, sin, a square root, a power). Where a kernel may be
written in several ways, the cost is that of the formula beside it. The report shows these counts
beside the MACs, and its bound on the gain (``flop_bound``) needs them.

``each``, ``reduce``, ``times`` and ``softmax`` are rules of both tables as they are; of the other
operators both tables find the arguments, and call what is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal, Protocol

from st3fx.flops.operand import Elementwise, Operand
from st3fx.flops.products import all_hits, line_hits

PER_OUTPUT: Final[dict[str, int]] = {
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "neg", "abs", "sign", "minimum", "maximum", "remainder",
         "floor", "ceil", "round", "trunc", "sqrt", "reciprocal", "exp", "log", "log1p", "expm1",
         "erf", "pow", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
         "acosh", "atanh", "tanh", "relu"),
        1,
    ),
    "rsqrt": 2,         # 1 / √x
    "clamp": 2,         # the larger, then the smaller
    "leaky_relu": 2,    # comparison, multiplication
    "threshold": 1,
    "softsign": 3,      # x / (1 + |x|)
    "sigmoid": 4,       # 1 / (1 + exp(−x))
    "log_sigmoid": 4,   # −log(1 + exp(−x))
    "softplus": 3,      # log(1 + exp(x))
    "silu": 5,          # x · sigmoid(x)
    "mish": 5,          # x · tanh(softplus(x))
    "gelu": 5,          # x · ½ · (1 + erf(x / √2))
    "gelu_tanh": 9,     # ½ · x · (1 + tanh(c · (x + d · x³)))
    "elu": 4,           # comparison; α · (exp(x) − 1)
    "selu": 5,          # the same, scaled
    "celu": 5,          # comparison; α · (exp(x / α) − 1)
    "hardtanh": 2,      # a clamp
    "hardsigmoid": 4,   # clamp(x / 6 + ½, 0, 1)
    "hardswish": 5,     # x · hardsigmoid(x)
    "hardshrink": 1,
    "softshrink": 2,
    "lerp": 3,          # a + w · (b − a)
    "addcmul": 3,
    "addcdiv": 3,
}  # fmt: skip
"""Operations for each scalar of the output."""

PER_INPUT: Final[dict[str, int]] = {
    "sum": 1,
    "mean": 1,
    "prod": 1,
    "max": 1,
    "min": 1,
    "aminmax": 2,
    "argmax": 1,
    "argmin": 1,
    "logsumexp": 2,  # exp, addition
    "norm": 2,       # square, addition
    "var": 4,        # sum for the mean; difference, square, sum
    "cumsum": 1,
    "col2im": 1,     # overlapping patches are added up
}  # fmt: skip
"""Operations for each scalar of the input; what is left to do once per output is left out."""

SOFTMAX: Final = 5
"""Per scalar: the largest, difference, exp, sum, quotient (or a second difference for its log)."""

BATCH_NORM: Final = 2
"""Per scalar in eval mode: one multiplication, one addition, with everything else in them."""

MOMENTS: Final = 6
"""Per scalar of layer, group and instance norm: sum; difference, square, sum; difference, scale."""

RMS_NORM: Final = 3
"""Per scalar: square, sum, scale."""

LOCAL_RESPONSE: Final = 4
"""Per scalar beside its window of squares: square, scale and shift, power, quotient."""

LINEAR_SAMPLE: Final = 2
"""Per source value of linear or cubic resampling: multiplication, addition."""

CELL: Final[dict[str, int]] = {
    "lstm": 30,  # 4 gates: 2 sums of 2 with biases, sigmoid or tanh; c = f·c + i·g; h = o·tanh(c)
    "gru": 23,   # 3 gates the same way, r·(…), h = (1 − z)·n + z·h
    "rnn": 4,    # 3 sums, tanh or relu
}  # fmt: skip
"""Per hidden unit and step of a recurrent layer, beside its matrix products."""


PoolKind = Literal["max_pool", "avg_pool"]


class Call(Protocol):
    """An operator with its tensors, of either level."""

    @property
    def x(self) -> Operand:
        """The first tensor that it is given."""

    @property
    def out(self) -> Operand:
        """The first tensor that it gives back."""


Rule = Callable[[Call], list[Elementwise]]


def each(op: str) -> Rule:
    """Count as many operations for each scalar of the output as the table says."""
    return lambda call: per_output(op, call.out)


def reduce(op: str) -> Rule:
    """Count as many operations for each scalar of the input as the table says."""
    return lambda call: per_input(op, call.x)


def times(op: str, count: int) -> Rule:
    """This many operations for each scalar of the output, whatever its type."""
    return lambda call: [Elementwise(op, count * call.out.numel)]


softmax = times("softmax", SOFTMAX)
"""Softmax and its logarithm."""


def per_output(op: str, out: Operand) -> list[Elementwise]:
    """So many operations for each scalar of the output; arithmetic on integers is not counted."""
    return [Elementwise(op, PER_OUTPUT[op] * out.numel)] if out.floating else []


def per_input(op: str, x: Operand) -> list[Elementwise]:
    """So many operations for each scalar of the input."""
    return [Elementwise(op, PER_INPUT[op] * x.numel)] if x.floating else []


def gelu(out: Operand, approximate: str | None) -> list[Elementwise]:
    """GELU in either form."""
    return per_output("gelu_tanh" if approximate == "tanh" else "gelu", out)


def clamp(out: Operand, bounds: int) -> list[Elementwise]:
    """One comparison for each bound."""
    return [Elementwise("clamp", bounds * out.numel)] if out.floating else []


def batch_norm(x: Operand) -> list[Elementwise]:
    """Batch norm with fixed statistics."""
    return [Elementwise("batch_norm", BATCH_NORM * x.numel)]


def norm(op: str, x: Operand, *learned: Operand | None) -> list[Elementwise]:
    """Layer, group or instance norm; a learned vector that is there costs one operation more."""
    return [Elementwise(op, (MOMENTS + _count(learned)) * x.numel)]


def rms_norm(x: Operand, learned: Operand | None) -> list[Elementwise]:
    """RMS norm, with a learned vector or without."""
    return [Elementwise("rms_norm", (RMS_NORM + _count([learned])) * x.numel)]


def attention(scores: int, *masks: Operand | None) -> list[Elementwise]:
    """The scale and the softmax of so many scores, and a sum with each mask that is there."""
    added = [Elementwise("add", scores)] * _count(masks)
    return [Elementwise("softmax", (SOFTMAX + 1) * scores), *added]


def _count(operands: Sequence[Operand | None]) -> int:
    return sum(operand is not None for operand in operands)


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
