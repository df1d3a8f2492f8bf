"""What everything costs that is no MAC, by the names of the report, for both levels.

One operation each: an addition, multiplication, division, comparison or choice of the larger, and a
function of one number (exp, log, erf, tanh, sin, a square root, a power). Where a kernel may be
written in several ways, the cost is that of the formula beside it.
"""

from __future__ import annotations

from typing import Final

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


def normalisation(numel: int, affine: int) -> int:
    """Operations of layer, group or instance norm with 0, 1 or 2 learned vectors."""
    return numel * (MOMENTS + affine)
