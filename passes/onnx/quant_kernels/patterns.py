"""What stands before each ``QuantizeLinear``, and which products become ours.

Factors of sums are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels import layers
from st3fx.passes.onnx.quant_kernels.cones import function, moved, requantized
from st3fx.passes.onnx.quant_kernels.free_sizes import are_equal
from st3fx.passes.onnx.quant_kernels.layers import Found
from st3fx.passes.onnx.quant_kernels.packed_ops import MICROSOFT, PACKED_WEIGHT
from st3fx.passes.onnx.quant_kernels.qdq import (
    Numbers,
    Range,
    behind_range,
    channel_numbers,
    numbers,
    quantized,
)
from st3fx.passes.onnx.quant_kernels.quant_role import (
    Picture,
    QuantRefused,
    QuantRole,
    Step,
    picture,
)
from st3fx.passes.onnx.sparse_kernels.patterns import window
from st3fx.passes.onnx.sparse_kernels.role import Attributes
from st3fx.passes.onnx.values import constant, is_op
from st3fx.runtime import operators
from st3fx.runtime.costs import QuantWork


def role(node: ir.Node) -> Found:
    """What a node gives can be made by; ``None`` where it stays what it is."""
    if match := _PRODUCTS.get(node.op_type if node.domain == "" else ""):
        return match(node)
    value = node.inputs[0] if node.inputs else None
    if value is None or not is_op(node, "QuantizeLinear"):
        return None
    if (each := channel_numbers(node)) is not None and not each.signed:
        span = behind_range(value, each)
        conv = span.value.producer()
        return layers.convolution(node, conv, span, each) if conv and is_op(conv, "Conv") else None
    after = numbers(node)
    if after is None or after.signed:
        return None
    # First: a sum or product of one tensor and a function of it is a function of it.
    if (table := function(node, after)) is not None:
        return table
    span = behind_range(value, after)
    behind = span.value.producer()
    match_op = _BEFORE.get(behind.op_type if behind is not None and behind.domain == "" else "")
    if behind is not None and match_op is not None:
        found = match_op(node, behind, span, after)
        if found is not None:
            return found
    return moved(node, after)


def unquantized(node: ir.Node) -> QuantRefused | None:
    """A layer of quantized numbers that has no form of ours.

    A convolution that no ``QuantizeLinear`` to bytes follows, or what could not be written out.
    """
    if node.op_type in PACKED_WEIGHT and node.domain in ("", MICROSOFT):
        return layers.packed_refused(node, PACKED_WEIGHT[node.op_type])
    if not is_op(node, "Conv") or not any(_is_back(value) for value in node.inputs[:2]):
        return None
    return layers.convolution_refused(node)


def _is_back(value: ir.Value | None) -> bool:
    return value is not None and is_op(value.producer(), "DequantizeLinear")


def _work(*pictures: Picture) -> QuantWork:
    return QuantWork(moved=sum(one.channels * one.positions for one in pictures))


def _made(
    quantize: ir.Node,
    behind: ir.Node,
    op: str,
    images: tuple[ir.Value, ...],
    attributes: Attributes,
    after: Numbers,
    pictures: tuple[Picture, ...],
    *,
    flatten: bool = False,
) -> QuantRole:
    step = Step(op, images, {}, attributes, pictures[-1].channels)
    return QuantRole(quantize, (step,), after, images, str(behind.name), behind.op_type,
                     _work(*pictures), flatten=flatten)  # fmt: skip


def addition(quantize: ir.Node, behind: ir.Node, span: Range, after: Numbers) -> Found:
    """``Add`` of two quantized images of one shape → ``QuantAdd``.

    Where sizes are free, they must be the same whatever they are.
    """
    pair = _quantized_images(behind)
    if len(pair) != 2 or pair[0][2] != pair[1][2]:
        return None
    if not are_equal(*behind.inputs, axes=(0, 2, 3)):
        return None
    (first, a, given), (second, b, _) = pair
    factors = a.scale / after.scale, b.scale / after.scale
    if max(factors) > LARGEST_FACTOR:
        return None
    attributes = {
        "a_factor": factors[0], "b_factor": factors[1],
        "offset": after.zero - a.zero * factors[0] - b.zero * factors[1], **span.limits,
    }  # fmt: skip
    return _made(quantize, behind, operators.QUANT_ADD, (first, second), attributes, after,
                 (given,) * 3)  # fmt: skip


def _quantized_images(node: ir.Node) -> list[tuple[ir.Value, Numbers, Picture]]:
    """The operands of a node that are quantized images: tensor, its numbers, its size."""
    pairs = [(quantized(value), picture(value)) for value in node.inputs]
    return [(*about, seen) for about, seen in pairs if about is not None and seen is not None]


LARGEST_FACTOR = 2.0**11
"""Of two scales: with a larger one all but a few bytes become the least or the largest."""

_LEAST_FACTOR = 2.0**-100


def multiplication(quantize: ir.Node, behind: ir.Node, span: Range, after: Numbers) -> Found:
    """``Mul`` of a quantized image by one value for each channel → ``QuantScale``."""
    pair = _quantized_images(behind)
    if len(pair) != 2 or not are_equal(*behind.inputs, axes=(0,)):
        return None
    for (image, x, given), (scale, s, small) in (pair, pair[::-1]):
        if (small.height, small.width) != (1, 1):
            continue
        if small.channels != given.channels or (given.height, given.width) == (1, 1):
            continue
        factor = x.scale * s.scale / after.scale
        if factor > LARGEST_FACTOR:
            return None
        attributes = {
            "channels": given.channels, "factor": factor,
            "x_zero_point": x.zero, "s_zero_point": s.zero, "y_zero_point": after.zero,
            **span.limits,
        }  # fmt: skip
        return _made(quantize, behind, operators.QUANT_SCALE, (image, scale), attributes, after,
                     (given, given))  # fmt: skip
    return None


def max_pool(quantize: ir.Node, behind: ir.Node, span: Range, after: Numbers) -> Found:
    """``MaxPool`` → ``QuantMaxPool``, with a table behind it where the scale is another one."""
    source, attributes = quantized(behind.inputs[0]), _pool(behind)
    given, taken = picture(behind.inputs[0]), picture(behind.outputs[0])
    if source is None or attributes is None or given is None or taken is None:
        return None
    image, before = source
    largest = Step(operators.QUANT_MAX_POOL, (image,), {}, attributes, taken.channels)
    if before.means == after.means and not span.limits:
        steps: tuple[Step, ...] = (largest,)
    else:
        table = requantized(before, after).clip(span.minimum, span.maximum)
        constants = {f"{quantize.outputs[0].name}.table": table}
        steps = (largest, Step(operators.QUANT_LOOKUP, (0,), constants, {}, taken.channels))
    return QuantRole(quantize, steps, after, (image,), str(behind.name), "MaxPool",
                     _work(given, taken))  # fmt: skip


def average_pool(quantize: ir.Node, behind: ir.Node, span: Range, after: Numbers) -> Found:
    """``AveragePool`` → ``QuantAveragePool``."""
    source, attributes = quantized(behind.inputs[0]), _pool(behind)
    given, taken = picture(behind.inputs[0]), picture(behind.outputs[0])
    if source is None or attributes is None or given is None or taken is None:
        return None
    image, before = source
    if not _is_near(before, after):
        return None
    attributes = {
        **attributes, **_average(before, after), **span.limits,
        "count_include_pad": behind.attributes.get_int("count_include_pad", 0),
    }  # fmt: skip
    return _made(quantize, behind, operators.QUANT_AVERAGE_POOL, (image,), attributes, after,
                 (given, taken))  # fmt: skip


def _is_near(before: Numbers, after: Numbers) -> bool:
    return _LEAST_FACTOR < before.scale / after.scale < LARGEST_FACTOR


def _average(before: Numbers, after: Numbers) -> dict[str, int | float]:
    return {
        "factor": before.scale / after.scale,
        "x_zero_point": before.zero,
        "y_zero_point": after.zero,
    }


def _pool(node: ir.Node) -> Attributes | None:
    given = picture(node.inputs[0])
    if given is None or len(node.outputs) > 1:
        return None
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    moves = window(node, kernel)
    if node.attributes.get_int("count_include_pad", 0) and _exceeds(moves, given):
        return None
    return {
        "channels": given.channels,
        **moves,
        "ceil_mode": node.attributes.get_int("ceil_mode", 0),
    }


def _exceeds(moves: Mapping[str, tuple[int, ...]], given: Picture) -> bool:
    """Whether a window is larger than the image and its padding.

    By what ONNX Runtime divides there depends on the opset.
    """
    kernel, dilations, pads = moves["kernel_shape"], moves["dilations"], moves["pads"]
    return any(
        size is not None and size + pads[i] + pads[i + 2] <= dilations[i] * (kernel[i] - 1)
        for i, size in enumerate((given.height, given.width))
    )


def global_average(quantize: ir.Node, behind: ir.Node, span: Range, after: Numbers) -> Found:
    """The average of whole images, flattened behind it or not → ``QuantGlobalAveragePool``."""
    flatten = False
    if is_op(behind, "Flatten", "Reshape", "Squeeze"):
        inner = behind.inputs[0].producer() if behind.inputs[0] is not None else None
        given = picture(behind.inputs[0])
        if inner is None or given is None or (given.height, given.width) != (1, 1):
            return None
        shape = behind.outputs[0].shape
        if shape is None or len(shape) != 2 or shape[1] != given.channels:
            return None
        behind, flatten = inner, True
    if not is_op(behind, "GlobalAveragePool", "ReduceMean"):
        return None
    source, given = quantized(behind.inputs[0]), picture(behind.inputs[0])
    if source is None or given is None:
        return None
    if behind.op_type == "ReduceMean":
        axes = constant(behind.inputs[1]) if len(behind.inputs) > 1 else None
        listed = behind.attributes.get_ints("axes", ()) if axes is None else axes.reshape(-1)
        if sorted(int(axis) % 4 for axis in listed) != [2, 3]:
            return None
        flatten = flatten or not behind.attributes.get_int("keepdims", 1)
    image, before = source
    if not _is_near(before, after):
        return None
    attributes = {"channels": given.channels, **_average(before, after), **span.limits}
    small = Picture(given.channels, 1, 1)
    return _made(quantize, behind, operators.QUANT_GLOBAL_AVERAGE_POOL, (image,), attributes,
                 after, (given, small), flatten=flatten)  # fmt: skip


_BEFORE: dict[str, Callable[[ir.Node, ir.Node, Range, Numbers], Found]] = {
    "Conv": layers.convolution,
    "BatchNormalization": layers.batch_norm,
    "Add": addition,
    "Mul": multiplication,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "ReduceMean": global_average,
    "Flatten": global_average,
    "Reshape": global_average,
    "Squeeze": global_average,
}
"""Operator before a ``QuantizeLinear`` and the range of its numbers."""

_PRODUCTS: dict[str, Callable[[ir.Node], Found]] = {
    "Gemm": layers.gemm,
    "MatMul": layers.product,
    "MatMulInteger": layers.dynamic,
}
"""Operators whose input and output are float32 in our form."""
