"""Writes the dense counterpart of a graph with zeros, which a benchmark compares it with.

A zero becomes a small random number; in a quantised weight it moves one step away from the zero
point, so that all that multiplies is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from st3fx.bench.variant import Array
from st3fx.errors import BenchError
from st3fx.export.write import save_proto
from st3fx.flops.onnx_node import attributes
from st3fx.flops.onnx_weights import PACKED, ZERO_POINTS
from st3fx.passes.onnx.normal_form import all_nodes, dense, normal_form
from st3fx.passes.onnx.plain_operators import plain_proto
from st3fx.runtime.open_model import open_model


def is_quantised(array: Array) -> bool:
    """Whether a weight is of integers, of four bits or more."""
    return array.dtype.name.startswith(("int", "uint"))


def neighbours(
    array: Array, node: onnx.NodeProto | None, arrays: Mapping[str, onnx.TensorProto]
) -> tuple[int, Array]:
    """A weight with its zeros moved by one step, up or down.

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
    # In turns, so that sums stay small; at an end of the range there is one way alone.
    step = np.where(np.arange(array.size).reshape(array.shape) % 2, 1, -1)
    low, high = _range(array)
    step = np.where(numbers == low, 1, np.where(numbers == high, -1, step))
    filled = np.where(is_zero, numbers + step, numbers).astype(array.dtype)
    return int(np.count_nonzero(is_zero)), filled


def _range(array: Array) -> tuple[int, int]:
    """The least and the largest integer of an array's type."""
    name = array.dtype.name
    bits = int(name.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


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


_SCALE = 0.1


def write_dense(source: Path, target: Path, names: Collection[str]) -> int:
    """Write a graph without its zeros, of ONNX's own operators.

    Every zero becomes a random number, so small that what a layer computes keeps its size: times
    are not to depend on infinities. Of a quantised weight it becomes a neighbour of the zero point.

    Args:
        source: The ONNX file.
        target: The file to write.
        names: The initializers whose zeros are meant; sparse ones become dense.

    Returns:
        How many zeros there were. Where there were none, nothing is written.
    """
    model = normal_form(plain_proto(open_model(source, BenchError))).model
    graph, generator = model.graph, np.random.default_rng(0)
    _densify(graph, names)
    arrays = {item.name: item for item in graph.initializer}
    readers = {name: node for node in all_nodes(graph) for name in node.input if name in names}
    count = 0
    for tensor in graph.initializer:
        if tensor.name not in names:
            continue
        array = numpy_helper.to_array(tensor)
        if is_quantised(array):
            zeros, filled = neighbours(array, readers.get(tensor.name), arrays)
        else:
            zeros = int(array.size - np.count_nonzero(array))
            filled = _filled(array, zeros, generator) if zeros else array
        if zeros:
            tensor.CopyFrom(numpy_helper.from_array(filled, tensor.name))
            count += zeros
    if count:
        save_proto(model, target)
    return count


def _densify(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Put ordinary initializers in the places of sparse ones."""
    for sparse in list(graph.sparse_initializer):
        if sparse.values.name in names:
            graph.initializer.append(numpy_helper.from_array(dense(sparse), sparse.values.name))
            graph.sparse_initializer.remove(sparse)


def _filled(array: Array, zeros: int, generator: np.random.Generator) -> Array:
    left = array[array != 0].astype(np.float64)
    # All that is new adds _SCALE² to the sum of squares of what is left.
    size = _SCALE * np.sqrt(np.square(left).sum() / zeros) if left.size else _SCALE**2
    # From 0.5 to 1.5 and from −0.5 to −1.5, of one draw for both.
    noise = 2 * generator.random(zeros, np.float32) - 1
    noise += np.copysign(np.float32(0.5), noise)
    noise *= size
    filled = array.copy()
    filled[array == 0] = noise.astype(array.dtype)
    return filled
