"""What stands before a ``QuantizeLinear``, as steps of our operators: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels.qdq import ChannelNumbers, Numbers, QuantWeight
from st3fx.passes.onnx.sparse_kernels.role import Attributes
from st3fx.passes.onnx.values import Array
from st3fx.runtime.costs import QuantWork


@dataclass(frozen=True)
class Picture:
    """A quantized tensor of images.

    Attributes:
        channels: Their number.
        height: Of an image; ``None`` where it is free.
        width: The same.
    """

    channels: int
    height: int | None
    width: int | None

    @property
    def positions(self) -> int:
        """Pixels; where they are free, of a middling image."""
        if self.height is None or self.width is None:
            return MIDDLING
        return self.height * self.width


MIDDLING = 28 * 28
"""Pixels that an image of a free size counts for."""


def picture(value: ir.Value | None) -> Picture | None:
    """Channels and size of a tensor of four dimensions with a known number of channels."""
    if value is None or value.shape is None:
        return None
    sizes = list(value.shape)
    if len(sizes) != 4 or not isinstance(sizes[1], int):
        return None
    height, width = (size if isinstance(size, int) else None for size in sizes[2:])
    return Picture(sizes[1], height, width)


@dataclass(frozen=True)
class Step:
    """One of our operators.

    Attributes:
        op: Its name.
        inputs: Quantized tensors of the graph, or numbers of earlier steps.
        constants: Name of the initializer -> values, in the order of inputs.
        attributes: Of the node.
        channels: Of its output.
    """

    op: str
    inputs: tuple[ir.Value | int, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)
    attributes: Attributes = field(default_factory=dict)
    channels: int = 0


@dataclass(frozen=True, eq=False)
class QuantRole:
    """What a quantized tensor can be made by.

    Attributes:
        node: The ``QuantizeLinear`` that gives it, or the product that gives a float tensor.
        steps: Operators in order; the last one gives it.
        after: What its bytes mean; ``None`` for a product.
        images: The quantized tensors that the steps read.
        name: Of the weight, or of the node.
        op: Of ONNX: what it is.
        weight: Of a layer.
        work: What the cost model has to know.
        flatten: Whether ONNX's nodes drop the dimensions of size 1 that ours keep.
        value: Of a product: the float tensor that it reads.
        output: Of a product: the float tensor that it gives.
    """

    node: ir.Node
    steps: tuple[Step, ...]
    after: Numbers | ChannelNumbers | None
    images: tuple[ir.Value, ...]
    name: str
    op: str
    work: QuantWork
    weight: QuantWeight | None = None
    flatten: bool = False
    value: ir.Value | None = None
    output: ir.Value | None = None

    @property
    def result(self) -> ir.Value:
        """What it gives."""
        return self.output if self.output is not None else self.node.outputs[0]


@dataclass(frozen=True)
class QuantRefused:
    """Why a layer with a weight stays what it is."""

    node: ir.Node
    weight: str
    shape: tuple[int, ...]
    reason: str
