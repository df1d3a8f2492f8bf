"""Layers with weights: ``Conv`` before a ``QuantizeLinear``, and products of matrices.

The multiplier of an output channel is ``x_scale · w_scale / y_scale`` in float32, as ONNX Runtime's
own INT8 convolution computes it. A bias is rounded to units of ``x_scale · w_scale``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels.qdq import (
    ChannelNumbers,
    Numbers,
    QuantWeight,
    Range,
    bias,
    quantized,
    quantized_channels,
    weight,
    why_not,
)
from st3fx.passes.onnx.quant_kernels.quant_role import (
    Picture,
    QuantRefused,
    QuantRole,
    Step,
    picture,
)
from st3fx.passes.onnx.sparse_kernels.fuse import activation_after
from st3fx.passes.onnx.sparse_kernels.patterns import window
from st3fx.passes.onnx.sparse_kernels.role import Attributes
from st3fx.passes.onnx.values import Array, constant, is_op, only_user, rows
from st3fx.runtime import operators
from st3fx.runtime.costs import LANES, MANY, SHALLOW, QuantWork
from st3fx.runtime.layout import BLOCK, SparseBlocks, blocks, compress_blocks

_FINE = 2.0**16
"""Units of a bias in one of the output's, where a channel has no weights."""

_MOVED = 0.25
"""Steps of the output that rounding a bias may move it by."""

Found = QuantRole | QuantRefused | None


def _named(value: ir.Value | None) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the constant behind what an operator reads."""
    while value is not None and (node := value.producer()) is not None and node.inputs:
        value = node.inputs[0]
    array = constant(value)
    return str(value.name if value is not None else "?"), () if array is None else array.shape


def _refused(node: ir.Node, reason: str) -> QuantRefused:
    return QuantRefused(node, *_named(node.inputs[1]), reason)


def convolution_refused(conv: ir.Node) -> QuantRefused:
    """A convolution whose output does not become bytes, and why it stays."""
    if quantized(conv.inputs[0]) is None:
        return _refused(conv, why_not(conv.inputs[0]))
    return _refused(conv, "its output is not quantized right behind it")


def packed_refused(node: ir.Node, index: int) -> QuantRefused:
    """A layer that holds its conversions and could not be written out."""
    named = _named(node.inputs[index])
    return QuantRefused(node, *named, f"{node.op_type} has scales or a weight that are computed")


def convolution(
    quantize: ir.Node, conv: ir.Node, span: Range, after: Numbers | ChannelNumbers
) -> Found:
    """``Conv`` of a quantized image and weight, and the range of what is quantized behind it.

    Scales of single channels go into the multiplier: those of the output always, those of the
    input where the layer is depthwise.
    """
    source: tuple[ir.Value, Numbers | ChannelNumbers] | None = quantized(conv.inputs[0])
    given, taken = picture(conv.inputs[0]), picture(conv.outputs[0])
    kernel = weight(conv.inputs[1], 0, rank=4)
    if source is None and not isinstance(kernel, str) and given is not None:
        groups = conv.attributes.get_int("group", 1)
        if groups == given.channels == len(kernel.array):
            source = quantized_channels(conv.inputs[0])
    if source is None:
        return _refused(conv, why_not(conv.inputs[0]))
    if isinstance(kernel, str):
        return _refused(conv, kernel)
    if given is None or taken is None:
        return _refused(conv, "the channels of its input are not known")
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return _refused(conv, "its padding depends on the size (auto_pad)")
    if only_user(conv.outputs[0]) is None:
        return _refused(conv, "its output is used before it is quantized")
    image, before = source
    offset = conv.inputs[2] if len(conv.inputs) > 2 else None
    real = np.zeros(len(kernel.array)) if offset is None else bias(offset, len(kernel.array))
    if real is None:
        return _refused(conv, "its bias is computed")
    sums = _requantization(kernel, real, before, after)
    if isinstance(sums, str):
        return _refused(conv, sums)
    array, offsets, multiplier = sums
    attributes: Attributes = {
        "channels": given.channels,
        **window(conv, kernel.array.shape[2:]),
        "x_zero_point": before.zero,
        "y_zero_point": after.zero,
        **span.limits,
    }
    constants = {f"{kernel.name}.bias": offsets, f"{kernel.name}.multiplier": multiplier}
    step, work = _conv_step(image, kernel.name, array, constants, attributes,
                            conv.attributes.get_int("group", 1), given, taken)  # fmt: skip
    return QuantRole(quantize, (step,), after, (image,), kernel.name, "Conv", work,
                     weight=kernel)  # fmt: skip


def _requantization(
    kernel: QuantWeight,
    real: Array,
    before: Numbers | ChannelNumbers,
    after: Numbers | ChannelNumbers,
) -> tuple[Array, Array, Array] | str:
    """Weight, bias and multiplier of a convolution, or why there are none."""
    x, y = (np.asarray(about.scale, np.float32) for about in (before, after))
    with np.errstate(over="ignore", under="ignore"):
        multiplier = ((x * kernel.scale) / y).astype(np.float32)
    if not np.isfinite(multiplier).all():
        return "its scales are too far apart for float32"
    array = kernel.array.copy()
    array[multiplier == 0] = 0
    constant_rows = ~array.reshape(len(array), -1).any(axis=1)
    multiplier[constant_rows] = 1 / _FINE
    wide_x, wide_y = (scale.astype(np.float64) for scale in (x, y))
    unit = np.where(constant_rows, wide_y / _FINE, wide_x * kernel.scale.astype(np.float64))
    exact = np.where(constant_rows, np.clip(real / unit, -1024 * _FINE, 1024 * _FINE), real / unit)
    offsets = np.rint(exact)
    largest = np.abs(array.reshape(len(array), -1).astype(np.int64)).sum(axis=1) * 2 * 255
    if not np.isfinite(exact).all() or (np.abs(offsets) + largest >= 1 << 31).any():
        return "its bias is too large for sums of 32 bits"
    if (multiplier * np.abs(exact - offsets) > _MOVED).any():
        return "its bias is finer than its sums"
    return array, offsets.astype(np.int32), multiplier


def _conv_step(
    image: ir.Value,
    name: str,
    array: Array,
    constants: dict[str, Array],
    attributes: Attributes,
    group: int,
    given: Picture,
    taken: Picture,
) -> tuple[Step, QuantWork]:
    """Our operator for a convolution, and what it does."""
    rows_, vectors = len(array), math.ceil(taken.positions / LANES)
    taps = array.shape[2] * array.shape[3]
    strides = attributes["strides"]
    assert isinstance(strides, tuple)
    read = 0 if taps == 1 and max(strides) == 1 else given.channels * given.positions
    work = QuantWork(
        rows=rows_ * vectors,
        packed=read * (3 if taps > 1 else 1),
        macs=array.size * taken.positions * (SHALLOW if group == 1 and array.shape[1] < 8 else 1),
        passed=given.channels * given.positions + rows_ * taken.positions,
    )
    if group > 1 and group == given.channels == rows_:
        # A block is a tap of four channels.
        step = Step(operators.QUANT_DEPTHWISE_CONV, (image,), {name: array, **constants},
                    attributes, rows_)  # fmt: skip
        return step, replace(work, blocks=1.3 * rows_ * taps * vectors / 2, packed=3 * work.packed,
                             macs=0, depthwise=work.macs)  # fmt: skip
    if group > 1 and array.shape[1] % BLOCK:
        array, group = ungrouped(array, group), 1
    packed = compress_blocks(array)
    step = Step(
        operators.QUANT_CONV, (image,), {**_sparse(name, packed), **constants},
        {**attributes, "group": group}, rows_,
    )  # fmt: skip
    shared = _shared(packed)
    return step, replace(work, blocks=(packed.blocks - shared) * vectors, shared=shared * vectors)


def _shared(packed: SparseBlocks) -> int:
    """Blocks in fours of rows that have the same columns."""
    starts, found = packed.row_starts, 0
    for row in range(0, len(starts) - 4, 4):
        columns = [packed.columns[starts[r] : starts[r + 1]] for r in range(row, row + 4)]
        if all(np.array_equal(columns[0], other) for other in columns[1:]):
            found += 4 * len(columns[0])
    return found


def _sparse(name: str, packed: SparseBlocks) -> dict[str, Array]:
    parts = ("values", "columns", "row_starts")
    return {f"{name}.{part}": getattr(packed, part) for part in parts}


def ungrouped(array: Array, group: int) -> Array:
    """The weight of one group that computes the same: zeros for the channels of other groups."""
    count, depth = len(array) // group, array.shape[1]
    whole = np.zeros((len(array), depth * group, *array.shape[2:]), array.dtype)
    for index in range(group):
        mine = slice(index * count, (index + 1) * count)
        whole[mine, index * depth : (index + 1) * depth] = array[mine]
    return whole


_ONE = 127
"""The int8 weight that stands for one."""


def batch_norm(quantize: ir.Node, norm: ir.Node, span: Range, after: Numbers) -> Found:
    """``BatchNormalization`` of a quantized image → ``QuantDepthwiseConv`` with one tap.

    ``s x + (β − s μ)``, with weights of ±127 so that the shift has small units.
    """
    source, given = quantized(norm.inputs[0]), picture(norm.inputs[0])
    if source is None or given is None or only_user(norm.outputs[0]) is None:
        return None
    parts = [bias(value, given.channels) for value in norm.inputs[1:5]]
    known = [part for part in parts if part is not None]
    if len(known) < 4:
        return None
    scale, shift, mean, variance = known
    factor = scale / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    image, before = source
    name = str(norm.outputs[0].name)
    array = (_ONE * np.sign(factor)).astype(np.int8).reshape(-1, 1, 1, 1)
    kernel = QuantWeight(f"{name}.weight", array, (np.abs(factor) / _ONE).astype(np.float32), ())
    sums = _requantization(kernel, shift - factor * mean, before, after)
    if isinstance(sums, str):
        return None
    array, offsets, multiplier = sums
    step = Step(
        operators.QUANT_DEPTHWISE_CONV, (image,),
        {kernel.name: array, f"{name}.bias": offsets, f"{name}.multiplier": multiplier},
        {"channels": given.channels, "kernel_shape": (1, 1), "stands_for": "batch_norm",
         "x_zero_point": before.zero, "y_zero_point": after.zero, **span.limits},
        given.channels,
    )  # fmt: skip
    work = QuantWork(moved=2 * given.channels * given.positions)
    return QuantRole(quantize, (step,), after, (image,), name, "BatchNormalization", work)


def gemm(node: ir.Node) -> Found:
    """``Gemm`` of a quantized matrix and a constant one."""
    about = node.attributes
    transposed = about.get_int("transB", 0)
    kernel = weight(node.inputs[1], 0 if transposed else 1, rank=2)
    if _is_float(node.inputs[1], kernel):
        return None
    if isinstance(kernel, str):
        return _refused(node, kernel)
    scaled = about.get_float("alpha", 1.0) != 1 or about.get_float("beta", 1.0) != 1
    if about.get_int("transA", 0) or scaled:
        return _refused(node, "its input is transposed or scaled")
    offset = node.inputs[2] if len(node.inputs) > 2 else None
    real = None if offset is None else bias(offset, len(kernel.array))
    if offset is not None and real is None:
        return _refused(node, "its bias is computed")
    return _static(node, kernel, real, node.outputs[0])


def product(node: ir.Node) -> Found:
    """``MatMul`` of a quantized tensor by a constant matrix, with the bias after it."""
    kernel = weight(node.inputs[1], 1, rank=2)
    if _is_float(node.inputs[1], kernel):
        return None
    if isinstance(kernel, str):
        return _refused(node, kernel)
    real, result = _bias_after(node.outputs[0], len(kernel.array))
    return _static(node, kernel, real, result)


def _is_float(value: ir.Value | None, kernel: QuantWeight | str) -> bool:
    """Whether nothing about a product is quantized and constant: two activations, or float32."""
    if not isinstance(kernel, str):
        return False
    node = value.producer() if value is not None else None
    if node is not None and is_op(node, "Transpose"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is None or not is_op(node, "DequantizeLinear") or quantized(value) is not None


def _bias_after(value: ir.Value, size: int) -> tuple[Array | None, ir.Value]:
    """The constant that is added to a product, if that is all that reads it, and the sum."""
    adding = only_user(value)
    if adding is not None and is_op(adding, "Add"):
        other = next((v for v in adding.inputs if v is not value), None)
        real = bias(other, size)
        ranks = {len(v.shape) for v in (value, adding.outputs[0]) if v.shape is not None}
        if real is not None and len(ranks) < 2:
            return real, adding.outputs[0]
    return None, value


def _static(node: ir.Node, kernel: QuantWeight, real: Array | None, result: ir.Value) -> Found:
    behind = _behind_moves(node.inputs[0])
    source = quantized(behind)
    if source is None:
        return _refused(node, why_not(behind))
    before = source[1]
    attributes = {"x_scale": before.scale, "x_zero_point": before.zero}
    return _linear(node, kernel, real, node.inputs[0], result, attributes)


def _behind_moves(value: ir.Value | None) -> ir.Value | None:
    """The value of which another one has all numbers, in other places."""
    while value is not None and (node := value.producer()) is not None and is_op(node, *REARRANGED):
        value = node.inputs[0]
    return value


REARRANGED = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators between a ``DequantizeLinear`` and a product that leave the numbers as they are."""


def dynamic(node: ir.Node) -> Found:
    """``MatMulInteger`` of a ``DynamicQuantizeLinear``, scaled afterwards."""
    quantize = node.inputs[0].producer() if node.inputs[0] is not None else None
    array = constant(node.inputs[1])
    if quantize is None or not is_op(quantize, "DynamicQuantizeLinear") or array is None:
        return _refused(node, "its input is not quantized dynamically, or its weight is computed")
    if array.ndim != 2 or len(node.inputs) < 3 or node.inputs[2] is not quantize.outputs[2]:
        return _refused(node, "it has not the form that a dynamic quantizer writes")
    zero = constant(node.inputs[3]) if len(node.inputs) > 3 else np.zeros(1, np.int8)
    cast = only_user(node.outputs[0])
    scaling = only_user(cast.outputs[0]) if cast is not None and is_op(cast, "Cast") else None
    scales = None if scaling is None else _scales(scaling, quantize)
    if scales is None or zero is None or scaling is None:
        return _refused(node, "it has not the form that a dynamic quantizer writes")
    wide = array.astype(np.int16) - zero.astype(np.int16)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return _refused(node, "its weight is asymmetric: less its zero point it does not fit int8")
    placed = np.ascontiguousarray(wide.T.astype(np.int8))
    spread = np.ascontiguousarray(np.broadcast_to(scales.reshape(-1), (len(placed),)))
    kernel = QuantWeight(_named(node.inputs[1])[0], placed, spread, array.shape)
    real, result = _bias_after(scaling.outputs[0], len(placed))
    return _linear(node, kernel, real, quantize.inputs[0], result, {})


def _scales(scaling: ir.Node, quantize: ir.Node) -> Array | None:
    """The constant scale in ``sums · (x_scale · w_scale)``."""
    makers = [value.producer() for value in scaling.inputs if value is not None]
    both = next((node for node in makers if is_op(node, "Mul")), None)
    if both is None or not is_op(scaling, "Mul") or quantize.outputs[1] not in both.inputs:
        return None
    found = constant(next((v for v in both.inputs if v is not quantize.outputs[1]), None))
    return found if found is not None and found.dtype == np.float32 else None


def _linear(
    node: ir.Node,
    kernel: QuantWeight,
    real: Array | None,
    value: ir.Value | None,
    result: ir.Value,
    attributes: Attributes,
) -> Found:
    if value is None or value.dtype not in (None, ir.DataType.FLOAT):
        return _refused(node, "its input is not float32")
    count, features = kernel.array.shape
    worst = np.abs(kernel.array.astype(np.int64)).sum(axis=1).max(initial=0) * 2 * 255
    if worst >= 1 << 31:
        return _refused(node, "its sums are too large for 32 bits")
    packed = compress_blocks(kernel.array)
    constants = _sparse(kernel.name, packed)
    if real is not None:
        constants[f"{kernel.name}.bias"] = real.astype(np.float32)
    constants[f"{kernel.name}.scale"] = kernel.scale
    activation = activation_after(result)
    if activation is not None:
        attributes = {**attributes, "activation": activation.name, **activation.limits}
        result = activation.output
    vectors = rows(value)
    many, shared = math.ceil(vectors / LANES), _shared(packed)
    work = QuantWork(
        blocks=(packed.blocks - shared) * many,
        shared=shared * many,
        rows=count * many,
        moved=4 * vectors * (features + count),
        macs=kernel.array.size * vectors if vectors >= MANY else 0,
        weights=kernel.array.size,
    )
    step = Step(operators.QUANT_LINEAR, (), constants, {"features": features, **attributes}, count)
    return QuantRole(node, (step,), None, (), kernel.name, node.op_type, work, weight=kernel,
                     value=value, output=result)  # fmt: skip


def dense_blocks(role: QuantRole) -> int:
    """Blocks that the dense weight of a layer has."""
    assert role.weight is not None
    array = role.weight.array
    if role.steps[0].op == operators.QUANT_DEPTHWISE_CONV:
        return array.size
    return len(array) * blocks(array.shape[1]) * int(np.prod(array.shape[2:], dtype=np.int64))
