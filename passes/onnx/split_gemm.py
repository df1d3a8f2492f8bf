"""Writes each linear layer as a product and a sum: ``Gemm(x, W, b)`` as ``x·W + b``.

A quantizer that rounds activations call by call knows products alone.
"""

from __future__ import annotations

import onnx_ir as ir

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.tape import Tape
from st3fx.passes.onnx.values import is_op, take_place


class SplitGemm(GraphPass):
    """Replaces each ``Gemm`` that is a linear layer by ``MatMul``, and ``Add`` where it has a bias.

    Case 1: ``transB``: the weight is transposed in the graph, as torch exports a layer on more than
    two dimensions; ``TransposeWeights`` makes a constant of it. Case 2: it is not: it stays as it
    is. A ``Gemm`` that scales an operand, or transposes the activation, is left alone.
    """

    def apply(self, model: ir.Model) -> bool:
        """Replace all of them."""
        for node in [node for node in model.graph if _is_linear(node)]:
            tape = Tape(model.graph, node)
            weight = tape.input(1)
            if node.attributes.get_int("transB", 0):
                weight = tape("Transpose", [weight], perm=[1, 0])
            value = tape("MatMul", [tape.input(0), weight])
            if tape.input(2) is not None:
                value = tape("Add", [value, tape.input(2)])
            take_place(value, node)
            self.changed.append(str(node.name))
        return bool(self.changed)


def _is_linear(node: ir.Node) -> bool:
    about = node.attributes
    return (
        is_op(node, "Gemm")
        and about.get_float("alpha", 1.0) == 1
        and about.get_float("beta", 1.0) == 1
        and not about.get_int("transA", 0)
    )
