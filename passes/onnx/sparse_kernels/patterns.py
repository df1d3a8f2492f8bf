"""The table of patterns: which nodes of ONNX can become which of our operators.

Activations and residual sums that follow are part of our operators too; they are found when the
graph is written (``fuse``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.products import convolution, gemm, product, window
from st3fx.passes.onnx.sparse_kernels.role import Attributes, Refused, Role, is_small
from st3fx.passes.onnx.sparse_kernels.values import Array, constant, image
from st3fx.runtime import operators

Found = Role | Refused | None


def max_pool(node: ir.Node) -> Found:
    """``MaxPool`` without indices → ``ImageMaxPool``."""
    return _pool(node, operators.MAX_POOL, {}) if len(node.outputs) == 1 else None


def average_pool(node: ir.Node) -> Found:
    """``AveragePool`` → ``ImageAveragePool``."""
    counted = node.attributes.get_int("count_include_pad", 0)
    return _pool(node, operators.AVERAGE_POOL, {"count_include_pad": counted})


def _pool(node: ir.Node, op: str, more: dict[str, int]) -> Found:
    given, taken = image(node.inputs[0]), image(node.outputs[0])
    if given is None or taken is None or node.inputs[0] is None:
        return None
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    attributes: Attributes = {
        "channels": given.channels,
        **window(node, ()),
        "ceil_mode": node.attributes.get_int("ceil_mode", 0),
        **more,
    }
    return Role(node, op, (node.inputs[0],), node.outputs[0], attributes=attributes)


def global_average(node: ir.Node) -> Found:
    """``GlobalAveragePool``, or ``ReduceMean`` over height and width: the image's own average."""
    given = image(node.inputs[0])
    if given is None or node.inputs[0] is None:
        return None
    flatten = False
    if node.op_type == "ReduceMean":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = np.asarray(node.attributes.get_ints("axes", ())) if axes is None else axes
        if sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
            return None
        flatten = not node.attributes.get_int("keepdims", 1)
    attributes = {"channels": given.channels}
    return Role(node, operators.GLOBAL_AVERAGE_POOL, (node.inputs[0],), attributes=attributes,
                flatten=flatten)  # fmt: skip


def concat(node: ir.Node) -> Found:
    """``Concat`` along the channels → ``ImageConcat``."""
    pictures = [image(value) for value in node.inputs]
    values = tuple(value for value in node.inputs if value is not None)
    if node.attributes.get_int("axis") not in (1, -3) or len(values) < 2:
        return None
    channels = tuple(picture.channels for picture in pictures if picture is not None)
    if len(channels) < len(values):
        return None
    return Role(node, operators.CONCAT, values, node.outputs[0], tied=True,
                attributes={"channels": channels})  # fmt: skip


def addition(node: ir.Node) -> Found:
    """``Add`` of two images of one shape → ``ImageAdd``."""
    values = _same_shape(node)
    return Role(node, operators.ADD, values, node.outputs[0], tied=True) if values else None


def batch_norm(node: ir.Node) -> Found:
    """A ``BatchNormalization`` that stays → ``DepthwiseConv`` 1×1: ``s x + (β − s μ)``."""
    parts = [constant(value) for value in node.inputs[1:5]]
    if len(node.outputs) > 1 or any(part is None for part in parts):
        return None
    scale, shift, mean, variance = (np.asarray(part, np.float64) for part in parts)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return _per_channel(node, node.inputs[0], factor, shift - factor * mean, "batch_norm")


def multiplication(node: ir.Node) -> Found:
    """``Mul`` by a value for each channel → ``ChannelScale``, or ``DepthwiseConv`` by a constant.

    Of two images of one shape it is elementwise.
    """
    if values := _same_shape(node):
        return Role(node, "", values, node.outputs[0], tied=True)
    for inner, factor in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        given = image(inner)
        if inner is None or factor is None or given is None or image(node.outputs[0]) != given:
            continue
        array = constant(factor)
        if array is not None and array.shape in ((given.channels, 1, 1), (1, given.channels, 1, 1)):
            return _per_channel(node, inner, array.reshape(-1), None, "scale")
        scale = image(factor)
        if scale is not None and scale.positions == 1 and scale.channels == given.channels:
            return Role(node, operators.CHANNEL_SCALE, (inner,), node.outputs[0], tied=True,
                        others=(factor,), attributes={"channels": given.channels})  # fmt: skip
    return None


def elementwise(node: ir.Node) -> Found:
    """A function of one image, position by position: the node stays and takes any layout."""
    value = node.inputs[0]
    known = value is not None and image(value) is not None and len(node.outputs) == 1
    return Role(node, "", (value,), node.outputs[0], tied=True) if known and value else None


def _per_channel(
    node: ir.Node, value: ir.Value | None, factor: Array, shift: Array | None, stands_for: str
) -> Found:
    given = image(value)
    if given is None or value is None:
        return None
    name = str(node.outputs[0].name)
    bias = None if shift is None else np.asarray(shift, np.float32)
    weight = np.asarray(factor, np.float32).reshape(-1, 1, 1, 1)
    # The way back, and a count, tell it from a convolution by what it stands for.
    attributes: Attributes = {
        "channels": given.channels, "kernel_shape": (1, 1), "stands_for": stands_for
    }  # fmt: skip
    return Role(node, operators.DEPTHWISE_CONV, (value,), node.outputs[0], attributes=attributes,
                constants={f"{name}.weight": weight, f"{name}.bias": bias})  # fmt: skip


def _same_shape(node: ir.Node) -> tuple[ir.Value, ...]:
    """The two inputs where they are images of one shape, computed both; else nothing."""
    values = tuple(value for value in node.inputs if value is not None and constant(value) is None)
    pictures = {image(value) for value in values}
    if len(values) != 2 or len(pictures) != 1 or None in pictures:
        return ()
    first, second = (value.shape for value in values)
    return values if first == second else ()


PATTERNS: tuple[tuple[str, Callable[[ir.Node], Found]], ...] = (
    ("Conv", convolution),
    ("Gemm", gemm),
    ("MatMul", product),
    ("MaxPool", max_pool),
    ("AveragePool", average_pool),
    ("GlobalAveragePool ReduceMean", global_average),
    ("Concat", concat),
    ("Add", addition),
    ("BatchNormalization", batch_norm),
    ("Mul", multiplication),
    ("Relu Clip HardSwish HardSigmoid Sigmoid Swish Gelu LeakyRelu Elu Tanh Identity", elementwise),
)
"""Operators of ONNX, and what they can become."""

_TABLE = {name: match for names, match in PATTERNS for name in names.split()}


def role(node: ir.Node) -> Found:
    """What a node can become; ``None`` where it stays what it is."""
    match = _TABLE.get(node.op_type) if node.domain == "" else None
    found = match(node) if match else None
    if not isinstance(found, Role) or found.is_sparse:
        return found
    # Tiles of such small images would be padding for the most part.
    pictures = [image(value) for value in (*found.images, found.output) if value is not None]
    return None if any(p is not None and is_small(p) for p in pictures) else found
