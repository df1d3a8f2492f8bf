"""Goes through an ONNX graph node by node: constants, shapes, then the rules.

Every node's output shape comes from ONNX's own inference, with the values of constant inputs.
Nodes whose inputs are all constant are computed, so that weights behind a transposition or a
dequantisation have their values, and shapes that are calculated are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from st3fx.errors import FlopsError
from st3fx.flops import onnx_node, windows
from st3fx.flops.collect import Collector
from st3fx.flops.onnx_call import OnnxCall
from st3fx.flops.onnx_file import Shape
from st3fx.flops.onnx_rules import FREE, RULES
from st3fx.flops.onnx_types import SMALL, Types
from st3fx.flops.onnx_values import Array, Values
from st3fx.flops.operand import Operand, Window

_ZERO_POINTS = {
    "ConvInteger": (1, 3),
    "MatMulInteger": (1, 3),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
}
"""Operator -> inputs that are its quantised weight and the value in it that stands for zero."""

_PRODUCTS = frozenset(
    ("Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN", *_ZERO_POINTS)
)
"""Counted with constants on both sides too: a learned query with its weight."""


class Walk:
    """Goes through the nodes in order, as ONNX has them sorted."""

    def __init__(
        self, model: onnx.ModelProto, inputs: Mapping[str, onnx.TypeProto], collector: Collector
    ) -> None:
        """Prepare.

        Args:
            model: In which functions are put in place.
            inputs: Types of its inputs, with every size.
            collector: Takes in what is counted.
        """
        self.types = Types(model, inputs)
        self.values = Values(model.graph, {"": self.types.version})
        self._collector = collector
        self._windows: dict[str, Window] = {}

    def nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Take in nodes in order.

        Raises:
            FlopsError: When a shape cannot be known.
        """
        for node in nodes:
            if not self._is_constant(node) and not self._is_decided(node):
                self.types.infer(node, self.values)
                self._pad(node)
                self._count(node)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node's outputs are constant; then they are noted."""
        if node.op_type in ("Shape", "Size") and node.input[0] not in self.values:
            shape = self.types.shape(node.input[0])
            if shape is None:
                return False
            self.values.put(node.output[0], _shape_values(node, shape))
        else:
            known = all(name in self.values for name in node.input if name)
            kept = node.op_type.startswith("Random") or node.op_type in _PRODUCTS
            if not known or kept or not self.values.evaluate(node):
                return False
        for name in filter(None, node.output):
            array = self.values.array(name)
            code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            self.types.put(name, code, array.shape)
        return True

    def _is_decided(self, node: onnx.NodeProto) -> bool:
        """Whether a node is an ``If`` with a constant condition; then its branch is taken in."""
        if node.op_type != "If" or node.input[0] not in self.values:
            return False
        name = "then_branch" if self.values.array(node.input[0]).item() else "else_branch"
        branch: onnx.GraphProto = onnx_node.attributes(node)[name]
        self.types.declare(branch)
        for item in branch.initializer:
            self.values.put(item.name, numpy_helper.to_array(item))
        self.nodes(branch.node)
        for outer, inner in zip(node.output, branch.output, strict=True):
            self.types.alias(outer, inner.name)
            if inner.name in self.values:
                self.values.put(outer, self.values.array(inner.name))
        return True

    def _pad(self, node: onnx.NodeProto) -> None:
        """Note where real values are after padding with zeros."""
        if node.op_type in ("Identity", "Cast") and node.input[0] in self._windows:
            self._windows[node.output[0]] = self._windows[node.input[0]]
        if (
            node.op_type != "Pad"
            or onnx_node.attributes(node).get("mode", "constant") != "constant"
        ):
            return
        inputs = [*node.input, "", "", ""]
        pads = self._padding(node, inputs[1])
        zero = not inputs[2] or (
            inputs[2] in self.values and not self.values.array(inputs[2]).any()
        )
        if pads is not None and zero and not inputs[3]:  # input 3 chooses axes
            half = len(pads) // 2
            x = self._operand(inputs[0])
            self._windows[node.output[0]] = windows.padded(x, pads[:half], pads[half:])

    def _padding(self, node: onnx.NodeProto, name: str) -> list[int] | None:
        """Sizes before, then behind: an attribute, or, since opset 11, an input."""
        given = onnx_node.attributes(node).get("pads")
        if given is None and name in self.values:
            given = self.values.array(name)
        return None if given is None else [int(number) for number in given]

    def _count(self, node: onnx.NodeProto) -> None:
        if node.op_type in FREE:
            return
        rule = RULES.get(node.op_type)
        if rule is None:
            self._collector.miss(node.op_type)
            return
        inputs = [self._operand(name) if name else None for name in node.input]
        self._shift_zero(node, inputs)
        outputs = tuple(self._operand(name) if name else None for name in node.output)
        attributes = onnx_node.attributes(node)
        call = OnnxCall(node.op_type, attributes, tuple(inputs), outputs, self._integers(node))
        reads = [operand for operand in inputs if operand is not None]
        self._collector.add(rule(call), reads, [call.out], onnx_node.module(node))

    def _integers(self, node: onnx.NodeProto) -> dict[int, tuple[int, ...]]:
        arrays = {
            index: self.values.array(name)
            for index, name in enumerate(node.input)
            if name in self.values
        }
        return {
            index: tuple(int(number) for number in array.reshape(-1))
            for index, array in arrays.items()
            if array.dtype.kind in "iu" and array.size <= SMALL
        }

    def _shift_zero(self, node: onnx.NodeProto, inputs: list[Operand | None]) -> None:
        """Put in a quantised weight whose zeros are those of its zero point."""
        weight, zero = _ZERO_POINTS.get(node.op_type, (0, len(node.input)))
        if zero < len(node.input) and node.input[weight] in self.values:
            constant = self.values.constant(node.input[weight], node.input[zero])
            old = inputs[weight]
            assert old is not None
            inputs[weight] = Operand(old.shape, old.itemsize, old.floating, constant)

    def _operand(self, name: str) -> Operand:
        shape = self.types.shape(name)
        if shape is None:
            raise FlopsError(
                f"the shape of {name!r} depends on values, and is not known without running it"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.types.element(name))
        constant = self.values.constant(name) if name in self.values else None
        floating = dtype.kind in "fcV"
        return Operand(shape, dtype.itemsize, floating, constant, self._windows.get(name))


def _shape_values(node: onnx.NodeProto, shape: Shape) -> Array:
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    attributes = onnx_node.attributes(node)
    return np.array(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
