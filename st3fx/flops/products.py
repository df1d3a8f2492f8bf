"""The arithmetic of everything that multiplies with weights, for both levels.

How often the taps of a convolution or of a pooling window meet a real value.

A kernel is separable in this: tap ``(k1, k2)`` meets a real value at output ``(o1, o2)`` exactly
where ``k1`` does at ``o1`` and ``k2`` does at ``o2``. So one short list per dimension is enough.

Where a tensor has real values after explicit padding with zeros.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import product

from st3fx.flops.operand import Channels, Constant, Operand, Product, Window


def line_hits(
    outputs: int, window: tuple[int, int], *, kernel: int, stride: int, padding: int, dilation: int
) -> list[int]:
    """Output positions at which each tap of one dimension meets a real value.

    Output ``o`` and tap ``k`` meet at input ``o·stride − padding + k·dilation``.

    Args:
        outputs: Number of output positions.
        window: First real position of the input and the one after the last.
        kernel: Number of taps.
        stride: Input positions from one output to the next.
        padding: Positions before the input's first.
        dilation: Input positions from one tap to the next.

    Returns:
        One count per tap.
    """
    low, high = window
    hits = []
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(0, -((shift - low) // stride))  # ceil((low − shift) / stride)
        last = min(outputs - 1, (high - 1 - shift) // stride)
        hits.append(max(0, last - first + 1))
    return hits


def transposed_line_hits(
    outputs: int, window: tuple[int, int], *, kernel: int, stride: int, padding: int, dilation: int
) -> list[int]:
    """Real input positions from which each tap of a transposed dimension lands in the output.

    Input ``i`` and tap ``k`` land at output ``i·stride − padding + k·dilation``.
    """
    low, high = window
    hits = []
    for tap in range(kernel):
        shift = tap * dilation - padding
        first = max(low, -(shift // stride))  # ceil(−shift / stride)
        last = min(high - 1, (outputs - 1 - shift) // stride)
        hits.append(max(0, last - first + 1))
    return hits


def all_hits(lines: Sequence[Sequence[int]]) -> list[int]:
    """Positions at which each tap of the whole kernel meets, in row-major order."""
    return [math.prod(combination) for combination in product(*lines)]


def padded(x: Operand, before: Sequence[int], after: Sequence[int]) -> Window:
    """The window of ``x`` padded with zeros.

    Args:
        x: What is padded, perhaps padded already.
        before: Zeros before each of the last dimensions; negative ones cut off.
        after: Zeros behind.

    Returns:
        One pair for each of the last dimensions, in the coordinates of the padded tensor.
    """
    old = x.window or ()
    dims = max(len(before), len(old))
    before, after = ([0] * (dims - len(pads)) + list(pads) for pads in (before, after))
    sizes = x.shape[len(x.shape) - dims :]
    known = [*((0, size) for size in sizes[: dims - len(old)]), *old]
    windows = []
    for (low, high), size, first, last in zip(known, sizes, before, after, strict=True):
        whole = max(0, size + first + last)
        begin = min(max(0, low + first), whole)
        windows.append((begin, max(begin, min(whole, high + first))))
    return tuple(windows)


def convolution(
    x: Operand,
    weight: Operand,
    out: tuple[int, ...],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    transposed: bool = False,
) -> Product:
    """A convolution in any number of dimensions.

    Each tap that is not zero counts once for every place where it meets a real input value
    (``dense`` and ``sparse``), or for every output position (the padded counts; for a transposed
    convolution, for every input position).

    Args:
        x: Input (N, C, *spatial).
        weight: (O, C / groups, *kernel); transposed (C, O / groups, *kernel).
        out: Shape of the output (N, O, *spatial).
        stride: Per spatial dimension.
        padding: Zeros before the input in each spatial dimension; transposed: outputs cut off.
        dilation: Per spatial dimension.
        groups: Groups of channels.
        transposed: Whether it is a transposed convolution.
    """
    dims = len(weight.shape) - 2
    count = transposed_line_hits if transposed else line_hits
    lines = [
        count(
            out[2 + d],
            window,
            kernel=weight.shape[2 + d],
            stride=stride[d],
            padding=padding[d],
            dilation=dilation[d],
        )
        for d, window in enumerate(_windows(x, dims))
    ]
    hits = all_hits(lines)
    batch = x.shape[0]
    pairs = math.prod(weight.shape[:2])
    places = batch * math.prod(x.shape[2:] if transposed else out[2:])
    dense, dense_padded = batch * pairs * sum(hits), weight.numel * places
    constant = weight.constant
    op = f"conv{'_transpose' if transposed else ''}{dims}d"
    if constant is None:
        return Product(op, dense, dense, dense_padded, dense_padded)
    taps = constant.per_tap
    return Product(
        op,
        dense,
        batch * sum(hit * number for hit, number in zip(hits, taps, strict=True)),
        dense_padded,
        constant.nonzeros * places,
        constant,
        _convolution_channels(constant, groups, transposed=transposed),
    )


def _convolution_channels(constant: Constant, groups: int, *, transposed: bool) -> Channels:
    """The first dimension of the weight runs over all groups."""
    first, second = constant.tensor.shape[0] // groups, constant.tensor.shape[1]
    if transposed:
        return channels(constant, groups, second, first, outputs_first=False)
    return channels(constant, groups, first, second, outputs_first=True)


def _windows(x: Operand, dims: int) -> list[tuple[int, int]]:
    """Where the input has real values, for each spatial dimension."""
    windows = [(0, size) for size in x.shape[2:]]
    known = (x.window or ())[-dims:]
    for index, (low, high) in enumerate(known, start=dims - len(known)):
        windows[index] = (low, high)
    return windows


def contraction(op: str, dense: int, *operands: Operand) -> Product:
    """A product in which every scalar of each operand is used equally often.

    Linear layers, matrix products, einsum, recurrent steps: with ``n`` nonzeros among the ``N``
    scalars of the weight it takes ``dense · n / N`` MACs, which is a whole number.

    Args:
        op: Name for the report.
        dense: MACs with all scalars.
        operands: The weight is the last one that is a parameter, else the last constant one.
    """
    constants = [operand.constant for operand in operands if operand.constant is not None]
    named = [constant for constant in constants if constant.weight.parameter]
    constant = next(reversed(named or constants), None)
    if constant is None or not constant.tensor.numel():
        return Product(op, dense, dense, dense, dense)
    sparse = dense // constant.tensor.numel() * constant.nonzeros
    return Product(op, dense, sparse, dense, sparse, constant)


def matrix_product(op: str, left: Operand, right: Operand) -> Product:
    """``left @ right`` as NumPy has it: vectors, matrices, and batches of matrices that broadcast.

    Args:
        op: Name for the report; with a weight on either side it is a ``linear``.
        left: (*batch, n, k) or (k,).
        right: (*batch, k, m) or (k,).
    """
    rows = left.shape[-2] if len(left.shape) > 1 else 1
    columns = right.shape[-1] if len(right.shape) > 1 else 1
    batch = _broadcast(left.shape[:-2], right.shape[:-2])
    product = contraction(op, batch * rows * left.shape[-1] * columns, left, right)
    constant = product.constant
    if constant is None:
        return product
    once = _once(constant)
    shape = once.tensor.shape
    groups = math.prod(shape[:-2])
    if constant is right.constant and len(shape) > 1:
        found = channels(once, groups, shape[-1], shape[-2], outputs_first=False)
    elif len(shape) > 1:
        found = channels(once, groups, shape[-2], shape[-1], outputs_first=True)
    else:
        found = channels(once, 1, 1, shape[0], outputs_first=True)
    return dataclasses.replace(product, op="linear", channels=found)


def _once(constant: Constant) -> Constant:
    """A batch of matrices without those that are one in memory: a weight that was expanded."""
    tensor = constant.tensor
    strides = tensor.stride()[:-2]
    if all(strides):
        return constant
    return constant.part(("once",), tensor[tuple(slice(None, None if s else 1) for s in strides)])


def linear(x: Operand, weight: Operand, op: str = "linear") -> Product:
    """``x @ weight.T`` for x (*, k) and weight (m, k)."""
    product = contraction(op, x.numel * weight.shape[0], x, weight)
    constant = product.constant
    if constant is None or constant is not weight.constant:
        return product
    outputs, inputs = weight.shape
    found = channels(constant, 1, outputs, inputs, outputs_first=True)
    return dataclasses.replace(product, channels=found)


def grouped(x: Operand, weight: Operand, rows: Sequence[int]) -> Product:
    """``x[group] @ weight[e]`` for each expert ``e``, which gets so many rows of ``x``.

    Args:
        x: (sum of rows, k).
        weight: (experts, k, m).
        rows: How many the routing gives to each expert.
    """
    experts, inputs, outputs = weight.shape
    dense = sum(rows) * inputs * outputs
    constant = weight.constant
    if constant is None:
        return Product("linear", dense, dense, dense, dense)
    sparse = sum(n * count for n, count in zip(rows, constant.per_matrix, strict=True))
    found = channels(constant, experts, outputs, inputs, outputs_first=False)
    return Product("linear", dense, sparse, dense, sparse, constant, found)


def attention(query: Operand, key: Operand, value: Operand) -> Product:
    """``query @ key.T`` and the product of its softmax with ``value``, causal or not.

    Args:
        query: (*, Lq, E), with as many heads as the output has.
        key: (*, Lk, E).
        value: (*, Lk, Ev).
    """
    rows = math.prod(query.shape[:-1])
    dense = rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return Product("attention", dense, dense, dense, dense)


def _broadcast(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of matrices in two batches that broadcast."""
    length = max(len(first), len(second))
    pad = (1,) * length
    pairs = zip((*pad, *first)[-length:], (*pad, *second)[-length:], strict=True)
    return math.prod(b if a == 1 else a for a, b in pairs) if length else 1


def channels(
    constant: Constant, groups: int, outputs: int, inputs: int, *, outputs_first: bool
) -> Channels:
    """Channels of a weight, of which each group has so many outputs and inputs of its own.

    Args:
        constant: (groups, outputs, inputs, *rest), or, without ``outputs_first``,
            (groups, inputs, outputs, *rest), or anything that can be seen so.
        groups: Groups of channels, or matrices in a batch.
        outputs: Output channels of a group.
        inputs: Input channels of a group.
        outputs_first: Which of them comes first.
    """
    if outputs_first:
        seen = (groups, outputs, inputs)
        dead_outputs, dead_inputs = constant.dead(*seen)
    else:
        seen = (groups, inputs, outputs)
        dead_inputs, dead_outputs = constant.dead(*seen)
    return Channels(
        groups * inputs, groups * outputs, dead_inputs, dead_outputs, seen, outputs_first
    )
