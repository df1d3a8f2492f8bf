"""Which sizes of images are the same, whatever they are when a file runs.

ONNX infers no size behind a convolution whose input's size is free. Here it is ``⌊(s + a) / b⌋`` of
a symbol ``s``, and stays so behind a window: ``⌊(x + c) / d⌋ + 1`` of such an ``x`` is
``⌊(s + a + b (c + d)) / (b d)⌋``, as ``⌊⌊y / b⌋ / d⌋ = ⌊y / (b d)⌋``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.patterns import window
from st3fx.passes.onnx.values import constant, is_op

_KEY = "st3fx.sizes"

_WINDOWS = ("Conv", "MaxPool", "AveragePool")

_SAME = (
    "QuantizeLinear", "DequantizeLinear", "BatchNormalization", "Cast", "Celu", "Clip", "Elu",
    "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "Relu",
    "Selu", "Sigmoid", "Softplus", "Swish", "Tanh",
)  # fmt: skip
"""Operators whose output has the size of their first input."""

_BROADCAST = ("Add", "Div", "Max", "Min", "Mul", "Sub")


@dataclass(frozen=True)
class Free:
    """``⌊(symbol + shift) / step⌋``.

    Attributes:
        symbol: A name that the graph has for a size, or tensor and axis.
        shift: Whole number.
        step: Above zero.
    """

    symbol: object
    shift: int = 0
    step: int = 1

    def windows(self, room: int, stride: int) -> Free:
        """Windows with this stride, of an image with so many pixels beside what one needs."""
        return Free(self.symbol, self.shift + self.step * (room + stride), self.step * stride)


Size = int | Free


def note_sizes(graph: ir.Graph) -> None:
    """Note the sizes of all tensors, for :func:`are_equal`."""
    for value in graph.inputs:
        _note(value, None)
    for node in graph:
        found = _sizes(node)
        for index, value in enumerate(node.outputs):
            _note(value, found if index == 0 or is_op(node, "Split") else None)


def are_equal(first: ir.Value | None, second: ir.Value | None, *, axes: Collection[int]) -> bool:
    """Whether two tensors have the same sizes along some axes, in every run."""
    if first is None or second is None:
        return False
    a, b = _noted(first), _noted(second)
    return bool(a) and len(a) == len(b) and all(a[axis] == b[axis] for axis in axes)


def _noted(value: ir.Value) -> Sequence[Size]:
    found: Sequence[Size] = value.meta.get(_KEY, ())
    return found


def _note(value: ir.Value, found: Sequence[Size] | None) -> None:
    """What is derived, else what the graph says, else that it is its own."""
    if value.shape is None:
        return
    sizes: list[Size] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            sizes.append(size)
        elif found is not None and len(found) == len(value.shape):
            sizes.append(found[axis])
        else:
            name = size.value
            sizes.append(Free(name if name is not None else (id(value), axis)))
    value.meta[_KEY] = tuple(sizes)


def _sizes(node: ir.Node) -> Sequence[Size] | None:
    """Of a node's output, as they follow from its inputs; ``None`` where nothing does."""
    given = node.inputs[0] if node.inputs else None
    sizes = _noted(given) if given is not None else ()
    if not sizes:
        return None
    if is_op(node, *_SAME):
        return sizes
    if is_op(node, *_WINDOWS) and len(sizes) == 4:
        return _behind_window(node, sizes)
    if is_op(node, "Concat", "Split") and node.attributes.get_int("axis", 0) == 1:
        return [sizes[0], Free((id(node), 1)), *sizes[2:]]
    if is_op(node, "GlobalAveragePool"):
        return [*sizes[:2], *[1] * (len(sizes) - 2)]
    if is_op(node, *_BROADCAST):
        return _broadcast(node)
    return None


def _behind_window(node: ir.Node, sizes: Sequence[Size]) -> Sequence[Size] | None:
    weight = node.inputs[1] if is_op(node, "Conv") else None
    known = tuple(weight.shape or ()) if weight is not None else ()
    kernel = tuple(size for size in known[2:] if isinstance(size, int))
    listed = tuple(node.attributes.get_ints("kernel_shape", kernel))
    padded = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ceil = node.attributes.get_int("ceil_mode", 0)
    if len(listed) != 2 or padded or ceil:
        return None
    about = window(node, listed)
    found: list[Size] = [sizes[0], Free((id(node), 1))]
    for axis, size in enumerate(sizes[2:]):
        if isinstance(size, int):  # then ONNX infers the other one too
            found.append(Free((id(node), axis)))
            continue
        reach = about["dilations"][axis] * (listed[axis] - 1) + 1
        room = about["pads"][axis] + about["pads"][axis + 2] - reach
        found.append(size.windows(room, about["strides"][axis]))
    return found


def _broadcast(node: ir.Node) -> Sequence[Size] | None:
    """Of operands that are of one size, but for those of size 1."""
    many: list[Sequence[Size]] = []
    for value in node.inputs:
        array = constant(value)
        if value is None or (array is None and not _noted(value)):
            return None
        many.append(_noted(value) if array is None else array.shape)
    rank = max(map(len, many))
    found: list[Size] = []
    for axis in range(-rank, 0):
        there = {sizes[axis] for sizes in many if len(sizes) >= -axis} - {1}
        if len(there) > 1:
            return None
        found.append(there.pop() if there else 1)
    return found
