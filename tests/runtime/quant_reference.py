"""The quantized operators of ``ops.md`` in NumPy, bit for bit: what kernels are compared with.

Sums are exact: integers in float64, all of them below 2⁵³. Steps in float32 are rounded one by one.
Each function takes what a node gets, in the layouts that it gets it in, and gives what the node
gives; bytes that have no meaning are zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st3fx.runtime.layout import SparseBlocks, from_blocked_bytes, to_blocked_bytes

Array = NDArray[Any]
About = Mapping[str, Any]
Inputs = Sequence[Any]

F = np.float32


def reference(op: str, inputs: Sequence[Array | None], attributes: About) -> Array:
    """What an operator gives.

    Args:
        op: Its name.
        inputs: In order, ``None`` where one is left out.
        attributes: Of the node.
    """
    return OPERATORS[op]([*inputs, *[None] * 7], attributes)


def _clamp(value: Array, about: About, prefix: str = "") -> NDArray[np.uint8]:
    low, high = about.get(f"{prefix}minimum", 0), about.get(f"{prefix}maximum", 255)
    clamped: NDArray[np.uint8] = np.clip(value, F(low), F(high)).astype(np.uint8)
    return clamped


def requantized(sums: Array, multiplier: Any, about: About) -> NDArray[np.uint8]:
    """``clamp(rint(float(sums)·multiplier) + y_zero_point)``."""
    value = np.rint(sums.astype(F) * np.asarray(multiplier, F))
    return _clamp(value + F(about.get("y_zero_point", 0)), about)


def _windows(about: About) -> tuple[tuple[int, int], tuple[int, int], tuple[int, ...]]:
    strides, dilations = about.get("strides", (1, 1)), about.get("dilations", (1, 1))
    return tuple(strides), tuple(dilations), tuple(about.get("pads", (0, 0, 0, 0)))


def _convolved(images: Array, weight: Array, bias: Array, about: About, groups: int) -> Array:
    strides, dilations, (top, left, bottom, right) = _windows(about)
    centred = images.astype(np.float64) - about.get("x_zero_point", 0)
    padded = np.pad(centred, ((0, 0), (0, 0), (top, bottom), (left, right)))
    sums = torch.nn.functional.conv2d(
        torch.from_numpy(padded), torch.from_numpy(weight.astype(np.float64)),
        torch.from_numpy(bias.astype(np.float64)), strides, 0, dilations, groups,
    )  # fmt: skip
    exact: Array = sums.numpy()
    assert np.abs(exact).max(initial=0) < 1 << 31
    return exact


def _finished(sums: Array, multiplier: Array, residual: Array | None, about: About) -> Array:
    q = requantized(sums, multiplier.reshape(-1, 1, 1), about)
    if residual is not None:
        other = from_blocked_bytes(residual, q.shape[1])
        first = q.astype(F) * F(about["sum_factor"])
        second = other.astype(F) * F(about["residual_factor"])
        q = _clamp(np.rint((first + second) + F(about["offset"])), about, "sum_")
    return to_blocked_bytes(q)


def _conv(inputs: Inputs, about: About) -> Array:
    x, values, columns, row_starts, bias, multiplier, residual, *_ = inputs
    channels, groups = about["channels"], about.get("group", 1)
    sparse = SparseBlocks(values, columns, row_starts)
    weight = sparse.dense(channels // groups, tuple(about["kernel_shape"]))
    sums = _convolved(from_blocked_bytes(x, channels), weight, bias, about, groups)
    return _finished(sums, multiplier, residual, about)


def _depthwise(inputs: Inputs, about: About) -> Array:
    x, weight, bias, multiplier, residual, *_ = inputs
    channels = about["channels"]
    sums = _convolved(from_blocked_bytes(x, channels), weight, bias, about, channels)
    return _finished(sums, multiplier, residual, about)


def _dynamic(x: Array) -> tuple[np.float32, int]:
    """Scale and zero point of ``DynamicQuantizeLinear``."""
    low, high = min(F(0), x.min(initial=F(0))), max(F(0), x.max(initial=F(0)))
    scale = F(1) if low == high else F(F(high - low) / F(255))
    return scale, int(np.rint(np.clip(F(F(0) - F(low / scale)), F(0), F(255))))


def _linear(inputs: Inputs, about: About) -> Array:
    x, values, columns, row_starts, bias, weight_scale, *_ = inputs
    scale, zero = F(about.get("x_scale", 0.0)), about.get("x_zero_point", 0)
    if scale == 0:
        scale, zero = _dynamic(x)
    quantized = np.clip(np.rint(x / scale) + F(zero), F(0), F(255)).astype(np.float64) - zero
    weight = SparseBlocks(values, columns, row_starts).dense(about["features"])
    sums = (quantized @ weight.T.astype(np.float64)).astype(F)
    value = sums * (scale * weight_scale)
    if bias is not None:
        value = value + bias
    return _activated(value, about)


def _activated(value: Array, about: About) -> Array:
    kind = about.get("activation", "none")
    if kind == "relu":
        return np.maximum(value, F(0))
    if kind == "clip":
        return np.clip(value, F(about.get("minimum", 0.0)), F(about.get("maximum", 6.0)))
    tensor = torch.from_numpy(value)
    if kind == "silu":
        value = torch.nn.functional.silu(tensor).numpy()
    if kind == "hard_swish":
        value = torch.nn.functional.hardswish(tensor).numpy()
    return value


def _add(inputs: Inputs, about: About) -> Array:
    first, second = (value.astype(F) for value in inputs[:2])
    total = first * F(about["a_factor"]) + second * F(about["b_factor"])
    return _clamp(np.rint(total + F(about["offset"])), about)


def _lookup(inputs: Inputs, about: About) -> Array:
    table: Array = inputs[1]
    return table[inputs[0]]


def _pooled(images: Array, about: About, combine: Callable[[Array, Array], Array]) -> Array:
    """Goes over the windows of images: ``combine(pixels, inside)`` of ``[N, C, pixels]``."""
    strides, dilations, (top, left, bottom, right) = _windows(about)
    kernel, ceil = about["kernel_shape"], about.get("ceil_mode", 0)
    n, c, *size = images.shape
    begins, outs = (top, left), []
    for axis, ends in enumerate((bottom, right)):
        span = dilations[axis] * (kernel[axis] - 1) + 1
        room = size[axis] + begins[axis] + ends - span
        # Less than a stride too small there is one window: both round to zero.
        out = (-(-room // strides[axis]) if ceil else int(room / strides[axis])) + 1
        # No window begins behind the image and the padding before it.
        while ceil and (out - 1) * strides[axis] >= size[axis] + begins[axis]:
            out -= 1
        outs.append(out)
    result = np.zeros((n, c, *outs))
    for row, column in np.ndindex(*outs):
        places = [
            np.arange(kernel[axis]) * dilations[axis] + at * strides[axis] - begins[axis]
            for axis, at in enumerate((row, column))
        ]
        ys, xs = (p[(p >= 0) & (p < s)] for p, s in zip(places, size, strict=True))
        pixels = images[:, :, ys][:, :, :, xs].reshape(n, c, -1)
        # Pads count as pixels of the window, what only ceil_mode adds does not.
        limits = (size[0] + bottom, size[1] + right)
        padded = [np.sum(p < limit) for p, limit in zip(places, limits, strict=True)]
        result[:, :, row, column] = combine(pixels, np.prod(padded))
    return result


def _max_pool(inputs: Inputs, about: About) -> Array:
    images = from_blocked_bytes(inputs[0], about["channels"])
    return to_blocked_bytes(_pooled(images, about, lambda p, _: p.max(axis=2)).astype(np.uint8))


def _average(sums: Array, count: Any, about: About) -> Array:
    return requantized(sums, F(about["factor"]) / np.asarray(count, F), about)


def _average_pool(inputs: Inputs, about: About) -> Array:
    images = from_blocked_bytes(inputs[0], about["channels"]).astype(np.float64)
    centred, padded = images - about.get("x_zero_point", 0), about.get("count_include_pad", 0)
    sums = _pooled(centred, about, lambda p, _: p.sum(axis=2))
    counts = _pooled(centred, about, lambda p, all_: all_ if padded else np.full(1, p.shape[2]))
    return to_blocked_bytes(_average(sums, counts, about))


def _global_average_pool(inputs: Inputs, about: About) -> Array:
    images = from_blocked_bytes(inputs[0], about["channels"]).astype(np.float64)
    sums = (images - about.get("x_zero_point", 0)).sum(axis=(2, 3), keepdims=True)
    return to_blocked_bytes(_average(sums, images.shape[2] * images.shape[3], about))


def _scale(inputs: Inputs, about: About) -> Array:
    x, s = (from_blocked_bytes(value, about["channels"]).astype(np.int64) for value in inputs[:2])
    product = (x - about.get("x_zero_point", 0)) * (s - about.get("s_zero_point", 0))
    return to_blocked_bytes(requantized(product, about["factor"], about))


def _channels(inputs: Inputs, about: About) -> Array:
    images = [
        from_blocked_bytes(value, count)
        for value, count in zip(inputs, about["channels"], strict=False)
    ]
    tables = inputs[len(images)]
    if tables is not None:
        images = [table[value] for table, value in zip(tables, images, strict=True)]
    joined = np.concatenate(images, axis=1)
    return to_blocked_bytes(joined[:, list(about.get("sources") or range(joined.shape[1]))])


def _quantize(inputs: Inputs, about: About) -> Array:
    value = np.rint(inputs[0] / F(about["scale"])) + F(about.get("zero_point", 0))
    return to_blocked_bytes(_clamp(value, {}))


def _dequantize(inputs: Inputs, about: About) -> Array:
    images = from_blocked_bytes(inputs[0], about["channels"]).astype(np.int64)
    value: Array = (images - about.get("zero_point", 0)).astype(F) * F(about["scale"])
    return value


def _layout(inputs: Inputs, about: About) -> Array:
    layouts = (about.get("input_layout", "nchw"), about.get("output_layout", "nchw"))
    if layouts == ("nchw", "blocked"):
        return to_blocked_bytes(inputs[0])
    assert layouts == ("blocked", "nchw")
    return from_blocked_bytes(inputs[0], about["channels"])


OPERATORS: dict[str, Callable[[Inputs, About], Array]] = {
    "QuantConv": _conv,
    "QuantDepthwiseConv": _depthwise,
    "QuantLinear": _linear,
    "QuantAdd": _add,
    "QuantLookup": _lookup,
    "QuantMaxPool": _max_pool,
    "QuantAveragePool": _average_pool,
    "QuantGlobalAveragePool": _global_average_pool,
    "QuantScale": _scale,
    "QuantChannels": _channels,
    "QuantizeImage": _quantize,
    "DequantizeImage": _dequantize,
    "QuantLayout": _layout,
}
"""By name."""
