"""The table of patterns: which nodes of ONNX can become which of our operators.

Activations and residual sums that follow are part of our operators too; they are found when the
graph is written (``fuse``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.role import Attributes, Refused, Role, Weight, is_small
from st3fx.passes.onnx.values import (
    Array,
    bias,
    constant,
    image,
    is_op,
    matrix,
    only_user,
    rows,
)
from st3fx.runtime import operators
from st3fx.runtime.costs import ConvWork, LinearWork

Found = Role | Refused | None


def convolution(node: ir.Node) -> Found:
    """``Conv`` → ``SparseConv``; ``DepthwiseConv`` where each channel has its own filter."""
    weight = node.inputs[1]
    given, taken = image(node.inputs[0]), image(node.outputs[0])
    found = matrix(weight)
    name, shape = _named(weight)
    if found is None:
        return Refused(node, name, shape, "its weight is no float32 constant")
    array = found[1]
    if array.ndim != 4:
        return Refused(node, name, shape, f"kernels have {array.ndim - 2} dimensions, not 2")
    if given is None or taken is None or node.inputs[0] is None:
        return Refused(node, name, shape, "the size of its input is not known")
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return Refused(node, name, shape, "its padding depends on the size (auto_pad)")
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    offsets = bias(offset, len(array))
    if offset is not None and offsets is None:
        return Refused(node, name, shape, "its bias is computed")
    group = node.attributes.get_int("group", 1)
    moves = window(node, array.shape[2:])
    attributes: Attributes = {"channels": given.channels, **moves}
    if group > 1 and group == given.channels == len(array):
        constants = {name: array, **_constants(offset, offsets)}
        return Role(node, operators.DEPTHWISE_CONV, (node.inputs[0],), node.outputs[0],
                    constants=constants, attributes=attributes)  # fmt: skip
    work = ConvWork(
        rows=len(array),
        columns=array[0].size,
        nonzeros=int(np.count_nonzero(array)),
        taps=array.shape[2] * array.shape[3],
        stride=max(moves["strides"]),
        groups=group,
        in_positions=given.positions,
        out_positions=taken.positions,
    )
    return Role(
        node, operators.SPARSE_CONV,
        images=() if is_small(given) else (node.inputs[0],),
        output=None if is_small(taken) else node.outputs[0],
        others=(node.inputs[0],) if is_small(given) else (),
        weight=Weight(name, array.reshape(len(array), -1), array.shape),
        constants=_constants(offset, offsets),
        attributes={**attributes, "group": group},
        work=work,
    )  # fmt: skip


def window(node: ir.Node, kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kernel, strides, dilations and pads of a node, with ONNX's defaults."""
    about = node.attributes
    return {
        "kernel_shape": tuple(about.get_ints("kernel_shape", kernel)),
        "strides": tuple(about.get_ints("strides", (1, 1))),
        "dilations": tuple(about.get_ints("dilations", (1, 1))),
        "pads": tuple(about.get_ints("pads", (0, 0, 0, 0))),
    }


def gemm(node: ir.Node) -> Found:
    """``Gemm`` with a constant matrix ``B`` → ``SparseLinear``."""
    name, shape = _named(node.inputs[1])
    found = matrix(node.inputs[1])
    if found is None:
        return None  # a product of two activations
    about = node.attributes
    if about.get_int("transA", 0) or about.get_float("alpha", 1.0) != 1:
        return Refused(node, name, shape, "its input is transposed or scaled")
    array = found[1] if about.get_int("transB", 0) else found[1].T
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    offsets = bias(offset, len(array))
    if offset is not None and (offsets is None or about.get_float("beta", 1.0) != 1):
        return Refused(node, name, shape, "its bias is computed or scaled")
    return _linear(node, node.inputs[0], found[0], array, _constants(offset, offsets))


def product(node: ir.Node) -> Found:
    """``MatMul`` with a constant matrix on either side, with a bias after it → ``SparseLinear``."""
    left, right = (matrix(value) for value in node.inputs)
    if (left is None) == (right is None):
        return None  # two activations, or two constants
    name, array = left or right  # type: ignore[misc]
    inner = node.inputs[1 if left else 0]
    if array.ndim != 2 or inner is None or inner.dtype != ir.DataType.FLOAT:
        return Refused(node, name, array.shape, "it is no single float32 matrix")
    if inner.shape is None or len(inner.shape) < 2:
        return Refused(node, name, array.shape, "the shape of its input is not known")
    if left:
        columns = list(inner.shape)[-1]
        return _linear(node, inner, name, array, {}, side="left",
                       vectors=columns if isinstance(columns, int) else 1)  # fmt: skip
    adding = only_user(node.outputs[0])
    if adding is not None and is_op(adding, "Add"):
        other = next(v for v in adding.inputs if v is not node.outputs[0])
        offsets = bias(other, array.shape[1])
        if offsets is not None and other is not None:
            return _linear(node, inner, name, array.T, _constants(other, offsets),
                           extra=(adding,))  # fmt: skip
    return _linear(node, inner, name, array.T, {})


def _linear(
    node: ir.Node,
    value: ir.Value | None,
    name: str,
    array: Array,
    constants: dict[str, Array | None],
    *,
    side: str = "right",
    vectors: int | None = None,
    extra: tuple[ir.Node, ...] = (),
) -> Role:
    assert value is not None
    work = LinearWork(
        rows=len(array),
        columns=array.shape[1],
        nonzeros=int(np.count_nonzero(array)),
        vectors=rows(value) if vectors is None else vectors,
    )
    return Role(
        node, operators.SPARSE_LINEAR,
        others=(value,),
        weight=Weight(name, array, array.shape),
        constants=constants or {"": None},
        attributes={"features": array.shape[1], "side": side},
        extra=extra,
        work=work,
    )  # fmt: skip


def _constants(value: ir.Value | None, array: Array | None) -> dict[str, Array | None]:
    """A bias by its name."""
    return {str(value.name) if value is not None else "": array}


def _named(value: ir.Value | None) -> tuple[str, tuple[int, ...]]:
    """Name and shape of a weight."""
    array = constant(value)
    return str(value.name if value is not None else "?"), array.shape if array is not None else ()


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
