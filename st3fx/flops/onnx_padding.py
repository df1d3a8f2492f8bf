"""Padding as ONNX nodes give it: numbers for each side, or a rule."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from st3fx.flops import onnx_node, windows
from st3fx.flops.onnx_call import OnnxCall
from st3fx.flops.onnx_values import Values
from st3fx.flops.operand import Operand, Window


def pads_before(call: OnnxCall, kernel: Sequence[int], *, transposed: bool = False) -> list[int]:
    """Zeros before the input in each spatial dimension (transposed: outputs that are cut off).

    Args:
        call: A convolution or pooling.
        kernel: Its window.
        transposed: Whether it is a transposed convolution.
    """
    dims = len(kernel)
    rule = call.attributes.get("auto_pad", "NOTSET")
    if rule == "VALID":
        return [0] * dims
    shaped = transposed and call.attributes.get("output_shape")
    if rule == "NOTSET" and not shaped:
        return list(call.attributes.get("pads") or [0] * dims)[:dims]
    totals = _totals(call, kernel, transposed=transposed)
    # The smaller half comes first. With output_shape and without a rule it is the larger one.
    upper = rule == "SAME_UPPER"
    return [total // 2 if upper else total - total // 2 for total in totals]


def _totals(call: OnnxCall, kernel: Sequence[int], *, transposed: bool) -> list[int]:
    dims = len(kernel)
    sizes, outputs = call.x.shape[-dims:], call.out.shape[-dims:]
    strides, dilations = call.sizes("strides", dims), call.sizes("dilations", dims)
    extra = call.attributes.get("output_padding") or [0] * dims
    totals = []
    for d in range(dims):
        reach = (kernel[d] - 1) * dilations[d] + 1
        if transposed:
            total = strides[d] * (sizes[d] - 1) + extra[d] + reach - outputs[d]
        else:
            total = strides[d] * (outputs[d] - 1) + reach - sizes[d]
        totals.append(max(0, total))
    return totals


def real_window(node: onnx.NodeProto, x: Operand, values: Values) -> Window | None:
    """Where the result of a ``Pad`` has real values; ``None`` where it has no zeros of its own.

    Args:
        node: The ``Pad``.
        x: Its input.
        values: The constants of the graph.
    """
    attributes = onnx_node.attributes(node)
    if attributes.get("mode", "constant") != "constant":
        return None
    inputs = [*node.input, "", "", ""]
    filling = inputs[2]
    is_zero = not attributes.get("value", 0) and (
        not filling or (filling in values and not values.array(filling).any())
    )
    # Sizes before, then behind: an attribute, or, since opset 11, an input.
    pads = attributes.get("pads", attributes.get("paddings"))
    if pads is None and inputs[1] in values:
        pads = values.array(inputs[1])
    if pads is None or not is_zero:
        return None
    numbers = [int(number) for number in pads]
    half = len(numbers) // 2
    before, after = numbers[:half], numbers[half:]
    if inputs[3]:  # it chooses axes
        if inputs[3] not in values:
            return None
        axes = [int(axis) % len(x.shape) for axis in values.array(inputs[3])]
        rank = range(len(x.shape))
        before, after = (
            [pad[axes.index(axis)] if axis in axes else 0 for axis in rank]
            for pad in (before, after)
        )
    return windows.padded(x, before, after)
