"""Writes nodes of ONNX before an operator of ours that goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.values import Array, initializer
from st3fx.runtime.layout import SparseBlocks, SparseWeights


class Tape:
    """New nodes before one that goes."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self.about = node.attributes

    def __call__(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """A node with one output, float32 unless it is said otherwise."""
        made = ir.node(op, inputs, attributes)
        self.graph.insert_before(self.node, made)
        value = made.outputs[0]
        value.dtype = ir.DataType.FLOAT
        return value

    def input(self, index: int) -> ir.Value | None:
        """An input, or nothing where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def constant(self, name: str, array: Any) -> ir.Value:
        """An initializer; the one that is there where it holds the same."""
        return initializer(self.graph, name, array)

    def window(self, *more: str) -> dict[str, Any]:
        """The attributes of a window that are there."""
        names = ("kernel_shape", "strides", "dilations", "pads", *more)
        return {name: self.about[name].value for name in names if name in self.about}

    def constants(self, *indices: int) -> list[Array]:
        """Values of constant inputs.

        Raises:
            ValueError: One of them is no constant.
        """
        parts = [ir.convenience.get_const_tensor(value) for index in indices
                 if (value := self.input(index)) is not None]  # fmt: skip
        arrays = [part.numpy() for part in parts if part is not None]
        if len(arrays) != len(indices):
            raise ValueError(f"the weights of {self.node.name} are not constant")
        return arrays

    def named_weight(self, array: Array) -> ir.Value:
        """A dense weight under the name that it had before."""
        source = self.node.inputs[1]
        name = str(source.name if source is not None else "").removesuffix(".values")
        return self.constant(name, array)

    def blocks(self, channels: int, kernel: tuple[int, ...]) -> Array:
        """The weight in sparse blocks, dense.

        Raises:
            ValueError: It is damaged, or no constant.
        """
        arrays = self.constants(1, 2, 3)
        try:
            return SparseBlocks(*arrays).dense(channels, kernel)
        except (IndexError, ValueError) as error:
            raise ValueError(f"damaged weights of {self.node.name}: {error}") from error

    def weight(self, columns: int, shape: Callable[[int], tuple[int, ...]]) -> ir.Value:
        """The sparse weight, dense, as an initializer."""
        arrays = self.constants(1, 2, 3)
        try:
            dense = SparseWeights(*arrays).dense(columns)
        except (IndexError, ValueError) as error:
            raise ValueError(f"damaged weights of {self.node.name}: {error}") from error
        return self.named_weight(dense.reshape(shape(len(dense))))

    def finish(self, value: ir.Value, residual: ir.Value | None = None) -> ir.Value:
        """Add the residual, then the activation."""
        if residual is not None:
            value = self("Add", [value, residual])
        kind = self.about.get_string("activation", "none")
        if kind == "relu":
            return self("Relu", [value])
        if kind == "clip":
            low, high = self.about.get_float("minimum", 0.0), self.about.get_float("maximum", 6.0)
            limits = [self.constant(f"limit_{x:g}", np.float32(x)) for x in (low, high)]
            return self("Clip", [value, *limits])
        if kind == "silu":
            return self("Mul", [value, self("Sigmoid", [value])])
        return self("HardSwish", [value]) if kind == "hard_swish" else value
