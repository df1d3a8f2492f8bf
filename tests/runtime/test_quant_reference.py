"""The NumPy reference of quantized operators beside ONNX Runtime's float32 operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from st3fx.runtime.layout import from_blocked_bytes, to_blocked_bytes
from tests.runtime import quant_ops
from tests.runtime.quant_reference import reference

POOLS: list[dict[str, Any]] = [
    {"strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"strides": (2, 2), "pads": (0, 1, 1, 0), "ceil_mode": 1},
    {"strides": (1, 3), "pads": (1, 0, 2, 1), "ceil_mode": 1},
]


def in_float(op: str, x: Any, constants: dict[str, Any], about: dict[str, Any]) -> Any:
    """What ONNX Runtime computes."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *constants], ["y"], **about)], "graph",
        [value("x", TensorProto.FLOAT, None)], [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})[0]


@pytest.mark.parametrize("about", POOLS, ids=str)
@pytest.mark.parametrize("padded", [0, 1])
def test_pools(about: dict[str, Any], padded: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 9, 12), np.uint8)
    about = {"kernel_shape": (3, 3), **about}
    ours = {"channels": 5, "factor": 1.1, "x_zero_point": 8, "y_zero_point": 9, **about}
    blocked = to_blocked_bytes(images)
    largest = from_blocked_bytes(reference("QuantMaxPool", [blocked], ours), 5)
    assert np.array_equal(largest, in_float("MaxPool", images, {}, about))
    padded_about = {"count_include_pad": padded}
    mean = reference("QuantAveragePool", [blocked], ours | padded_about)
    exact = in_float("AveragePool", images.astype(np.float32) - 8, {}, about | padded_about)
    wanted = np.clip(1.1 * exact + 9, 0, 255)
    assert np.abs(from_blocked_bytes(mean, 5) - wanted).max() <= 0.501


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups: int) -> None:
    generator = np.random.default_rng(1)
    weight = quant_ops.weight(generator, (6, 8 // groups, 3, 3), 0.5)
    images = generator.integers(0, 256, (2, 8, 9, 12), np.uint8)
    about = {"kernel_shape": (3, 3), "strides": (2, 1), "pads": (1, 0, 2, 1), "group": groups}
    bias = generator.integers(-5000, 5000, 6, np.int32)
    ours = {"channels": 8, "x_zero_point": 99, "y_zero_point": 121, "minimum": 10, **about}
    result = reference(
        "QuantConv",
        [to_blocked_bytes(images), *quant_ops.sparse_inputs(weight).values(), bias,
         np.full(6, 2e-3, np.float32)],
        ours,
    )  # fmt: skip
    sums = in_float("Conv", images - 99.0, {"w": weight, "b": bias}, about)
    wanted = np.clip(2e-3 * sums + 121, 10, 255)
    assert np.abs(from_blocked_bytes(result, 6) - wanted).max() <= 0.51
