"""Which nodes run in integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from st3fx.quantization.layers import find_layers, integer_nodes
from tests.passes.onnx.graphs import graph, weight

ONE = np.ones((8, 1, 1), np.float32)
CONSTANTS = {"w": weight(8, 8, 1, 1), "v": weight(8, 8, 1, 1, seed=1), "one": ONE}


def _integers(body: str) -> list[str]:
    """Operators of a graph of images that run in integers, in order."""
    model = graph("float[N,8,4,4] x => float[N,8,4,4] y", body, **CONSTANTS)
    proto: onnx.ModelProto = ir.to_proto(model)
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    layers = [layer for layer in find_layers(proto.graph, {}) if not layer.reason]
    return integer_nodes(proto.graph, layers)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        # An addition between two layers, with its activation.
        ("a = Conv (x, w)\nb = Add (a, a)\nc = Relu (b)\ny = Conv (c, v)", [0, 1, 2, 3]),
        # One operand in integers will do, and one reader.
        ("a = Conv (x, w)\nb = Add (a, x)\nc = Conv (b, v)\ny = Exp (c)", [0, 1, 2]),
        ("a = Conv (x, w)\nb = Add (a, a)\nc = Conv (b, v)\ny = Sub (b, c)", [0, 1, 2]),
        # Nobody of integers reads it, or makes it; a chain of such ends alike.
        ("a = Conv (x, w)\nb = Add (a, a)\ny = Exp (b)", [0]),
        ("a = Conv (x, w)\nb = Add (a, a)\nc = Add (b, a)\ny = Exp (c)", [0]),
        ("a = Add (x, x)\ny = Conv (a, w)", [1]),
        # A constant operand stays what it is; an activation goes into its layer.
        ("a = Conv (x, w)\nb = Mul (a, one)\ny = Conv (b, v)", [0, 2]),
        ("a = Conv (x, w)\nb = Relu (a)\ny = Exp (b)", [0, 1]),
        # What has no integer kernel.
        ("a = Conv (x, w)\nb = HardSwish (a)\ny = Conv (b, v)", [0, 2]),
    ],
)
def test_what_lies_between_layers_runs_in_integers(body: str, wanted: list[int]) -> None:
    assert [int(name.rpartition("_")[2]) for name in _integers(body)] == wanted
