"""Depthwise convolution and pools against torch and ONNX Runtime, on every instruction set."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from st3fx import native
from tests.runtime import ops

ISAS = native.available_isas()
LAYOUTS = list(itertools.product(["nchw", "blocked"], repeat=2))
SIZES = [(7, 7), (14, 14), (5, 23), (28, 30)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise(isa: str, layouts: tuple[str, str], size: tuple[int, int], stride: int) -> None:
    generator = np.random.default_rng(0)
    for kernel, dilation, activation in (
        (3, 1, "relu6"),
        (5, 1, "silu"),
        (3, 2, "none"),
        (1, 1, "clip"),
    ):
        pad = (kernel - 1) * dilation // 2
        weight = generator.standard_normal((19, 1, kernel, kernel)).astype(np.float32)
        bias = generator.standard_normal(19).astype(np.float32)
        x = generator.standard_normal((2, 19, *size)).astype(np.float32)
        a, b, c = (torch.from_numpy(array).double() for array in (x, weight, bias))
        expected = torch.nn.functional.conv2d(a, b, c, stride, pad, dilation, 19)
        z = generator.standard_normal(expected.shape).astype(np.float32)
        attributes = {
            "channels": 19, "kernel_shape": (kernel, kernel), "strides": (stride, stride),
            "dilations": (dilation, dilation), "pads": (pad,) * 4,
            "input_layout": layouts[0], "output_layout": layouts[1],
        }  # fmt: skip
        node = ops.Node(
            "DepthwiseConv",
            attributes | ops.ACTIVATIONS[activation],
            ["x", "weight", "bias", "z"],
            {"weight": weight, "bias": bias},
        )
        result = node.run(isa, x=ops.place(x, layouts[0]), z=ops.place(z, layouts[1]))
        expected = ops.activated(expected + torch.from_numpy(z), activation)
        ops.assert_close(ops.plain(result, layouts[1], 19), expected)


def pooled(op: str, x: ops.Array, attributes: dict[str, Any]) -> torch.Tensor:
    """What ONNX Runtime's own operator gives."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("size", [*SIZES, (56, 57)])
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": (2, 2), "strides": (2, 2)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
        {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (3, 2), "strides": (2, 3), "pads": (1, 0, 1, 1), "ceil_mode": 1},
        {"kernel_shape": (2, 2), "dilations": (2, 3), "pads": (1, 1, 1, 1)},
    ],
    ids=str,
)
def test_pools(
    isa: str, layouts: tuple[str, str], size: tuple[int, int], attributes: dict[str, Any]
) -> None:
    x = np.random.default_rng(1).standard_normal((2, 11, *size)).astype(np.float32)
    own = {"channels": 11, "input_layout": layouts[0], "output_layout": layouts[1]}
    placed = ops.place(x, layouts[0])
    result = ops.Node("ImageMaxPool", own | attributes, ["x"]).run(isa, x=placed)
    wanted = pooled("MaxPool", x, attributes)
    assert np.array_equal(ops.plain(result, layouts[1], 11), wanted.numpy())
    for count in (0, 1):
        given = attributes | {"count_include_pad": count}
        result = ops.Node("ImageAveragePool", own | given, ["x"]).run(isa, x=placed)
        ops.assert_close(ops.plain(result, layouts[1], 11), pooled("AveragePool", x, given))
