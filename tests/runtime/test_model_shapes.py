"""Every convolution and linear layer of eight networks, against ONNX Runtime's dense operators and
our scalar reference.

The images are small: what a kernel does differs with channels, kernels and strides.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper

from tests.runtime import ops

MODELS = [
    "resnet50", "mobilenet_v2", "vgg16", "densenet121", "convnext_tiny", "efficientnet_b0",
    "regnet_y_400mf", "shufflenet_v2_x1_0",
]  # fmt: skip
DENSITIES = [(0.5, 0.1), (0.2, 0.02)]
"""Layers take the two of a pair in turn."""

LARGEST = 1 << 24
"""Weights of the largest layer that is tried; vgg16's first linear layer has six times as many."""


@functools.cache
def modules(name: str) -> dict[str, torch.nn.Module]:
    """One module of each kind and shape."""
    return {str(module): module for module in torchvision.models.get_model(name).modules()}


def layers(name: str, kind: type[torch.nn.Module]) -> list[Any]:
    """One layer of each shape."""
    return [module for module in modules(name).values() if isinstance(module, kind)]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("densities", DENSITIES)
def test_convolutions(name: str, densities: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    for index, layer in enumerate(layers(name, torch.nn.Conv2d)):
        weight = ops.sparse_weight(generator, tuple(layer.weight.shape), densities[index // 2 % 2])
        rows = len(weight)
        bias = generator.standard_normal(rows).astype(np.float32)
        side = 6 if layer.in_channels > 3 else 20
        batch = (1, 3)[index % 2]
        x = generator.standard_normal((batch, layer.in_channels, side, side)).astype(np.float32)
        pads = (layer.padding[0], layer.padding[1]) * 2
        window = {"strides": layer.stride, "pads": pads, "kernel_shape": layer.kernel_size}
        expected = dense("Conv", x, weight, bias, group=layer.groups, **window)
        blocked: dict[str, Any] = {"input_layout": "blocked", "output_layout": "blocked"}
        node = ops.sparse_conv(weight, layer.groups, bias, **window, **blocked)
        placed = ops.place(x, "blocked")
        for isa, threads in ((None, 2), ("scalar", 1)):
            result = node.run(isa, threads, x=placed)
            ops.assert_close(ops.plain(result, "blocked", rows), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_depthwise_convolutions(name: str) -> None:
    generator = np.random.default_rng(2)
    for layer in layers(name, torch.nn.Conv2d):
        channels = layer.in_channels
        if layer.groups != channels or layer.out_channels != channels:
            continue
        weight = generator.standard_normal(tuple(layer.weight.shape)).astype(np.float32)
        bias = generator.standard_normal(channels).astype(np.float32)
        pads = (layer.padding[0], layer.padding[1]) * 2
        window = {"strides": layer.stride, "pads": pads, "kernel_shape": layer.kernel_size}
        for side in (7, 14, 30):
            x = generator.standard_normal((2, channels, side, side)).astype(np.float32)
            expected = dense("Conv", x, weight, bias, group=channels, **window)
            layouts = {"input_layout": "blocked", "output_layout": "blocked"}
            node = ops.Node(
                "DepthwiseConv",
                {"channels": channels, **window, **layouts},
                ["x", "weight", "bias"],
                {"weight": weight, "bias": bias},
            )
            for isa, threads in ((None, 2), ("scalar", 1)):
                result = node.run(isa, threads, x=ops.place(x, "blocked"))
                ops.assert_close(ops.plain(result, "blocked", channels), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("density", [d for pair in DENSITIES for d in pair])
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
            for isa, threads in ((None, 2), ("scalar", 1)):
                ops.assert_close(node.run(isa, threads, x=x), expected)
