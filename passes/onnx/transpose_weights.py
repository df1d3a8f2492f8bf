"""Writes weights as the products read them that torch's exporter transposes in the graph.

A linear layer on more than two dimensions is exported as ``MatMul(x, Transpose(weight))``, with the
weight as its state dict has it. A quantizer looks for constants: it would take the transposed
weight for an activation and leave the floats in the file.
"""

from __future__ import annotations

import onnx_ir as ir

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.values import is_op

SUFFIX = ".product"
"""Of a copy's name, where others read the weight as it was."""


class TransposeWeights(GraphPass):
    """Gives each ``MatMul`` of a transposed weight, and each product of a shared one, a constant.

    Case 1: nobody else reads the weight. It is stored transposed under its own name. Case 2:
    others do (a tied embedding): the products get a copy, ``NAME.product``. Case 3: a product
    reads a weight as it is that a lookup reads too: it gets a copy as well.

    Attributes:
        names: Name of each constant that was made -> that of the weight that it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}

    def apply(self, model: ir.Model) -> bool:
        """Find the weights, then rewrite their readers."""
        for weight in list(model.graph.initializers.values()):
            if weight.const_value is None or weight.shape is None or len(weight.shape) != 2:
                continue
            turned = [node for node, _ in weight.uses() if _turns(node)]
            plain = [node for node, index in weight.uses() if _multiplies(node, index)]
            if turned:
                self._turn(model.graph, weight, turned)
            elif plain and len(plain) < len(weight.uses()):
                copy = self._copy(model.graph, weight, f"{weight.name}{SUFFIX}", turned=False)
                for node in plain:
                    node.replace_input_with(1, copy)
        return bool(self.changed)

    def _turn(self, graph: ir.Graph, weight: ir.Value, turned: list[ir.Node]) -> None:
        name = str(weight.name)
        if len(turned) == len(weight.uses()):
            del graph.initializers[name]
        else:
            name += SUFFIX
        copy = self._copy(graph, weight, name, turned=True)
        for node in turned:
            ir.convenience.replace_all_uses_with(node.outputs[0], copy)
            graph.remove(node, safe=True)

    def _copy(self, graph: ir.Graph, weight: ir.Value, name: str, *, turned: bool) -> ir.Value:
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        tensor = ir.tensor(array.T.copy() if turned else array, name=name)
        copy = ir.Value(
            name=name,
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(copy)
        self.names[name] = str(weight.name)
        self.changed.append(name)
        return copy


def _turns(node: ir.Node) -> bool:
    """Whether a node only swaps the two dimensions of a weight, for products."""
    if not is_op(node, "Transpose") or node.outputs[0].is_graph_output():
        return False
    order = node.attributes.get("perm")
    if order is not None and list(order.as_ints()) != [1, 0]:
        return False
    uses = node.outputs[0].uses()
    return bool(uses) and all(is_op(user, "MatMul") and index == 1 for user, index in uses)


def _multiplies(node: ir.Node, index: int) -> bool:
    return is_op(node, "MatMul", "Gemm") and index == 1
