"""Goes through an ONNX graph node by node: constants, shapes, then the rules.

Every node's output shape comes from ONNX's own inference, with the values of constant inputs; of
ONNX Runtime's own operators from its. Nodes whose inputs are all constant are computed, so that
weights behind a transposition or a dequantisation have their values, and shapes that are calculated
are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from st3fx.errors import FlopsError
from st3fx.flops import onnx_node, onnx_weights
from st3fx.flops.einsum import contracts
from st3fx.flops.onnx_contrib_rules import CONTRIB_FREE, CONTRIB_RULES
from st3fx.flops.onnx_node import Entry, OnnxCall
from st3fx.flops.onnx_rules import FREE, RULES, real_window
from st3fx.flops.onnx_types import SMALL, Types
from st3fx.flops.onnx_values import Array, Values
from st3fx.flops.operand import Operand, Window
from st3fx.passes.onnx.normal_form import NormalForm, reads
from st3fx.runtime.operators import Shape

_RANDOM = ("Bernoulli", "Multinomial", "Random")
_SEQUENCES = ("Sequence", "SplitToSequence", "Optional")

LARGEST = 1 << 26
"""Scalars that a computed constant may have where it is much larger than what it is made of."""


class Walk:
    """Goes through the nodes in order."""

    def __init__(
        self,
        form: NormalForm,
        inputs: Mapping[str, onnx.TypeProto],
        take_control: Callable[[Walk, onnx.NodeProto], None],
    ) -> None:
        """Prepare.

        Args:
            form: The model.
            inputs: Types of its inputs, with every size.
            take_control: Takes in a node that has bodies, by walking through them.
        """
        self._take_control = take_control
        self.types = Types(form.model, inputs)
        self.values = Values(form)
        self.entries: list[Entry] = []
        self.depth = 0  # of bodies
        self.visits = 0
        self.made: set[str] = set()  # constants that count as activations
        self.opaque: dict[str, str] = {}  # constants that nothing can compute -> by which operator
        self._windows: dict[str, Window] = {}
        self._readers: dict[str, int] = {}
        for node in form.model.graph.node:
            for name in reads(node):
                self._readers[name] = self._readers.get(name, 0) + 1

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Take in nodes in order.

        Raises:
            FlopsError: When a shape cannot be known.
        """
        for node in nodes:
            self.visits += 1
            self._take(node)
            for name in () if self.depth else reads(node):
                self._readers[name] -= 1
                if not self._readers[name]:
                    self.values.release(name)

    def _take(self, node: onnx.NodeProto) -> None:
        if self._shape(node) or self._is_fixed(node):
            return
        if onnx_node.operator(node) in onnx_node.CONTROL:
            self._take_control(self, node)
            return
        self._infer(node)
        if node.op_type in ("Identity", "Cast") and node.input[0] in self._windows:
            self._windows[node.output[0]] = self._windows[node.input[0]]
        if node.op_type == "Pad" and self.types.shape(node.input[0]) is not None:
            window = real_window(node, self._operand(node.input[0]), self.values)
            if window is not None:
                self._windows[node.output[0]] = window
        self._count(node)

    def _infer(self, node: onnx.NodeProto) -> None:
        try:
            self.types.infer(node, self.values)
        except FlopsError:
            if not self.depth:
                raise
            self.types.lose(node.output)

    def miss(self, name: str) -> None:
        """Name something that cannot be counted."""
        self.entries.append(Entry(missing=name))

    def alias(self, name: str, other: str) -> None:
        """Note that a value is another one."""
        self.forget([name])
        self.types.alias(name, other)
        if other in self.values:
            self.values.alias(name, other)
        if other in self.made:
            self.made.add(name)
        if other in self.opaque:
            self.opaque[name] = self.opaque[other]
        if other in self._windows:
            self._windows[name] = self._windows[other]

    def forget(self, names: Sequence[str]) -> None:
        """Drop what is known of values that get others now: those of a body that runs again."""
        self.values.forget(names)
        for name in names:
            self.made.discard(name)
            self.opaque.pop(name, None)
            self._windows.pop(name, None)

    def is_dependent(self, name: str) -> bool:
        """Whether a value depends on an input of the graph."""
        return name not in self.values and name not in self.opaque

    def _shape(self, node: onnx.NodeProto) -> bool:
        """Note the sizes of a value, as ``Shape`` and ``Size`` give them."""
        if node.op_type not in ("Shape", "Size"):
            return False
        shape = self.types.shape(node.input[0])
        if shape is None:
            return False
        self.values.put(node.output[0], _shape_values(node, shape))
        self._note_types(node)
        return True

    def _is_fixed(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads constants alone; then its outputs are noted."""
        names = reads(node)
        if any(map(self.is_dependent, names)) or node.op_type.startswith((*_RANDOM, *_SEQUENCES)):
            return False
        known = all(name in self.values for name in names)
        if known and self._fits(node, names) and self.values.evaluate(node):
            self._note_types(node)
            if any(name in self.made for name in names) or self._is_layer(node):
                # It has values, but counts: what a layer makes of constants.
                self.made.update(filter(None, node.output))
                self._count(node)
            return True
        if onnx_weights.is_product(node) or onnx_node.operator(node) in onnx_node.CONTROL:
            return False
        self._infer(node)
        self.opaque.update(dict.fromkeys(filter(None, node.output), onnx_node.operator(node)))
        return True

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a node of constants is a layer, as of a learned query.

        Products of a matrix with a vector compute a weight (spectral norm), and so does an einsum
        that adds nothing up.
        """
        ranks = [self.values.array(name).ndim for name in node.input if name]
        if node.op_type == "Einsum":
            return contracts(onnx_node.attributes(node)["equation"], ranks)
        of_vector = node.op_type == "MatMul" and ranks[1] == 1
        return onnx_weights.is_product(node) and not of_vector

    def _fits(self, node: onnx.NodeProto, names: Sequence[str]) -> bool:
        """Whether the outputs of a node of constants are not too large to be computed."""
        largest = max((self.values.array(name).size for name in names), default=0)
        try:
            if onnx_node.operator(node) not in onnx_node.CONTROL:
                self.types.infer(node, self.values)
        except FlopsError:
            return True  # it may be that it is computed after all
        shapes = [self.types.shape(name) or () for name in node.output if name]
        count = sum(float(np.prod(shape, dtype=np.float64)) for shape in shapes)
        return count <= max(LARGEST, 4 * largest)

    def _note_types(self, node: onnx.NodeProto) -> None:
        for name in filter(None, node.output):
            array = self.values.array(name)
            self.types.put(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    def _count(self, node: onnx.NodeProto) -> None:
        name = onnx_node.operator(node)
        if name in FREE or name in CONTRIB_FREE:
            return
        rule = RULES.get(name) or CONTRIB_RULES.get(name)
        maker = onnx_weights.hidden(node, self.opaque)
        if rule is None or not self._is_known(node):
            self.miss(name)
            return
        if maker:
            self.miss(f"{name} with a weight that {maker} makes")
            return
        operands = [self._operand(item) if item else None for item in node.input]
        outputs = tuple(self._operand(item) if item else None for item in node.output)
        try:
            onnx_weights.replace(node, operands, self.values, self.made, self.is_dependent)
            attributes = onnx_node.attributes(node)
            call = OnnxCall(name, attributes, tuple(operands), outputs, self._integers(node))
            counted = tuple(rule(call))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):
            self.miss(name)  # not as the operator's definition has it
            return
        read = tuple(operand for operand in operands if operand is not None)
        self.entries.append(Entry(counted, read, (call.out,), onnx_node.module(node)))

    def _is_known(self, node: onnx.NodeProto) -> bool:
        """Whether the shapes around a node are known.

        Raises:
            FlopsError: When they depend on values, and on nothing that is named already.
        """
        unknown = [name for name in (*node.input, *node.output)
                   if name and self.types.shape(name) is None]  # fmt: skip
        if unknown and not self.depth and not any(map(self.types.is_lost, unknown)):
            raise FlopsError(
                f"the shape of {unknown[0]!r} depends on values, and is not known without running "
                "it"
            )
        return not unknown

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

    def _operand(self, name: str) -> Operand:
        shape, element = self.types.shape(name), self.types.element(name)
        assert shape is not None
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(element).itemsize
        fixed = name in self.values and name not in self.made
        constant = self.values.constant(name) if fixed else None
        floating = onnx_node.is_floating(element)
        return Operand(shape, itemsize, floating, constant, self._windows.get(name))


def _shape_values(node: onnx.NodeProto, shape: Shape) -> Array:
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    attributes = onnx_node.attributes(node)
    return np.array(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)
