"""Quantised weights without their zeros: what multiplies is one step away from the zero point."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from st3fx.bench.variant import Array
from st3fx.flops.onnx_node import attributes
from st3fx.flops.onnx_weights import PACKED, ZERO_POINTS


def is_quantised(array: Array) -> bool:
    """Whether a weight is of integers, of four bits or more."""
    return array.dtype.name.startswith(("int", "uint"))


def neighbours(
    array: Array, node: onnx.NodeProto | None, arrays: Mapping[str, onnx.TensorProto]
) -> tuple[int, Array]:
    """A weight with its zeros moved by one step: their lowest bit is another.

    Args:
        array: As it is stored.
        node: What reads it.
        arrays: Name -> initializer, zero points among them.

    Returns:
        How many zeros there were, and the weight without them; the given one where it is packed in
        a way of its own.
    """
    if node is not None and node.op_type in PACKED:
        return 0, array
    numbers = array.astype(np.int64)
    is_zero = numbers == _zero(array, node, arrays)
    filled = np.where(is_zero, numbers ^ 1, numbers).astype(array.dtype)
    return int(np.count_nonzero(is_zero)), filled


def _zero(
    array: Array, node: onnx.NodeProto | None, arrays: Mapping[str, onnx.TensorProto]
) -> Array:
    """The zero point of each scalar, or one for all."""
    none = np.zeros((), np.int64)
    if node is None:
        return none
    about = attributes(node)
    if node.op_type == "DequantizeLinear":
        place, axis, block = 2, about.get("axis", 1), about.get("block_size", 0)
    else:
        _, place, axis = ZERO_POINTS.get(node.op_type, (0, len(node.input), -1))
        axis, block = 0 if about.get("transB") else axis, 0
    name = node.input[place] if place < len(node.input) else ""
    if name not in arrays:
        return none
    zero: Array = numpy_helper.to_array(arrays[name]).astype(np.int64)
    if block:
        zero = np.repeat(zero, block, axis=axis)
        return np.take(zero, np.arange(array.shape[axis]), axis=axis)
    if zero.ndim == 1 and zero.size > 1:
        shape = [1] * array.ndim
        shape[axis] = -1
        return zero.reshape(shape)
    return zero
