"""A sum in front of a layer norm stays a node of its own behind a linear layer of ours."""

from __future__ import annotations

import onnx
import pytest

from tests.passes.onnx.quant_kernels.agreement import lowered, session
from tests.passes.onnx.quant_kernels.nets import Net


def block(norm: str) -> onnx.ModelProto:
    """A linear layer that is added to its input, and what reads the sum."""
    net = Net("N", 21)
    product = net.op("MatMul", net.q("x"), net.weight(21, 21, axis=1))
    total = net.op("Add", product, "x")
    if norm:
        return net.model(net.op(norm, total, net.floats(21), axis=-1))
    return net.model(net.op("Relu", total))


@pytest.mark.parametrize("norm", ["LayerNormalization", ""])
def test_only_a_sum_in_front_of_a_layer_norm_hides_its_shape(norm: str) -> None:
    proto, report = lowered(block(norm))
    assert [row.is_ours for row in report.rows] == [True]
    (ours,) = (node for node in proto.graph.node if node.op_type == "QuantLinear")
    known = {
        value.name for value in proto.graph.value_info if value.type.tensor_type.HasField("shape")
    }
    assert (ours.output[0] in known) == (not norm)
    session(proto, optimised=True)
