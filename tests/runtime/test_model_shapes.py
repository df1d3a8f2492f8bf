"""Every convolution and linear layer of three networks, against ONNX Runtime's dense operators.

The images are small: what a kernel does differs with channels, kernels and strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper

from tests.runtime import ops

MODELS = ["resnet50", "mobilenet_v2", "vgg16"]
DENSITIES = [0.5, 0.2, 0.1, 0.02]
LARGEST = 1 << 24
"""Weights of the largest layer that is tried; vgg16's first linear layer has six times as many."""


def layers(name: str, kind: type[torch.nn.Module]) -> list[Any]:
    """One layer of each shape."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    found = {str(module): module for module in model.modules() if isinstance(module, kind)}
    return list(found.values())


def dense(
    op: str, x: ops.Array, weight: ops.Array, bias: ops.Array, **attributes: Any
) -> torch.Tensor:
    """What ONNX Runtime's own operator gives."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "weight", "bias"], ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("density", DENSITIES)
def test_convolutions(name: str, density: float) -> None:
    generator = np.random.default_rng(0)
    for index, layer in enumerate(layers(name, torch.nn.Conv2d)):
        weight = ops.sparse_weight(generator, tuple(layer.weight.shape), density)
        rows = len(weight)
        bias = generator.standard_normal(rows).astype(np.float32)
        side = 8 if layer.in_channels > 3 else 20
        batch = (1, 3)[index % 2]
        x = generator.standard_normal((batch, layer.in_channels, side, side)).astype(np.float32)
        pads = (layer.padding[0], layer.padding[1]) * 2
        window = {"strides": layer.stride, "pads": pads, "kernel_shape": layer.kernel_size}
        expected = dense("Conv", x, weight, bias, group=layer.groups, **window)
        node = ops.sparse_conv(
            weight,
            layer.groups,
            bias,
            **window,
            input_layout="blocked",
            output_layout="blocked",
        )
        result = node.run(None, 2, x=ops.place(x, "blocked"))
        ops.assert_close(ops.plain(result, "blocked", rows), expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("density", DENSITIES)
def test_linear_layers(name: str, density: float) -> None:
    generator = np.random.default_rng(1)
    for layer in layers(name, torch.nn.Linear):
        if layer.weight.numel() > LARGEST:
            continue
        weight = ops.sparse_weight(generator, tuple(layer.weight.shape), density)
        bias = generator.standard_normal(len(weight)).astype(np.float32)
        for count in (1, 3):
            x = generator.standard_normal((count, weight.shape[1])).astype(np.float32)
            expected = dense("Gemm", x, weight, bias, transB=1)
            node = ops.Node(
                "SparseLinear",
                {"features": weight.shape[1]},
                ["x", "values", "columns", "row_starts", "bias"],
                ops.weight_inputs(weight) | {"bias": bias},
            )
            ops.assert_close(node.run(None, 2, x=x), expected)
