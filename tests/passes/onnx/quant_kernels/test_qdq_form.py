"""What other tools write, brought into the form that is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from st3fx.passes.onnx.quant_kernels.lower import lower_quantized
from st3fx.passes.onnx.quant_kernels.qdq_form import QdqForm
from st3fx.passes.onnx.values import constant
from tests.passes.onnx.quant_kernels.agreement import OURS_WIN
from tests.passes.onnx.quant_kernels.nets import Net


@pytest.mark.parametrize(
    ("about", "expected"),
    [({}, [0, 0, 200]), ({"output_dtype": TensorProto.INT8}, [-5, 0, 127]),
     ({"output_dtype": TensorProto.INT16}, None)],
)  # fmt: skip
def test_a_weight_is_rounded_to_the_type_that_its_quantizer_names(
    about: dict[str, int], expected: list[int] | None
) -> None:
    made = Net("N", 3, opset=21)
    weight = made.hold(np.array([-5.0, 0.0, 200.0], np.float32))
    whole = made.op("QuantizeLinear", weight, made.hold(np.float32(1)), **about)
    model = made.model(made.op("DequantizeLinear", whole, made.hold(np.float32(1))))
    graph = ir.from_proto(model)
    QdqForm()(graph)
    (back,) = (node for node in graph.graph if node.op_type == "DequantizeLinear")
    found = constant(back.inputs[0])
    assert (None if found is None else found.tolist()) == expected


def test_weights_of_any_size_are_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No serialized model has more than 2 GB: shapes are inferred without the weights."""
    net = Net(2, 64, 5, 6)
    model = net.model(net.q(net.conv(net.q("x"), 256, 64, 3)))
    infer = onnx.shape_inference.infer_shapes

    def small(given: onnx.ModelProto, **about: Any) -> onnx.ModelProto:
        assert given.ByteSize() < 16_000  # the weight has 147 kB
        return infer(given, **about)

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", small)
    assert lower_quantized(model, OURS_WIN).report.ours == 1
