"""ONNX graphs made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Array = npt.NDArray[Any]
MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model whose output is the last node's."""
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(nodes[-1].output[0])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Its file."""
    path = folder / "graph.onnx"
    onnx.save(model, path)
    return path


def of_layer(layer: _ConvNd, x: torch.Tensor) -> onnx.ModelProto:
    """A convolution layer as an exporter writes it, with its padding mode as a node of its own."""
    nodes, constants = _nodes(layer, "x", "layer.weight", "y")
    return graph(nodes, {"x": list(x.shape)}, constants)


def of_layers(
    layers: Mapping[str, _ConvNd], shapes: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """Convolutions side by side, each with an input of its own.

    Args:
        layers: Name of the weight -> layer.
        shapes: Name of the weight -> shape of its input.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    inputs: dict[str, Sequence[int | str]] = {}
    for index, (name, layer) in enumerate(layers.items()):
        more, weights = _nodes(layer, f"x{index}", name, f"y{index}")
        nodes += more
        constants |= weights
        inputs[f"x{index}"] = list(shapes[name])
    return graph(nodes, inputs, constants)


def _nodes(
    layer: _ConvNd, source: str, weight: str, out: str
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    transposed = isinstance(layer, _ConvTransposeNd)
    dims = layer.weight.dim() - 2
    before, after = _sides(layer, dims)
    attributes: dict[str, Any] = {
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    constants: dict[str, Array] = {weight: layer.weight.detach().numpy()}
    nodes = []
    if layer.padding_mode == "zeros":
        attributes["pads"] = before + after
    else:
        pads, padded = f"{out}_pads", f"{out}_padded"
        constants[pads] = np.array([0, 0, *before, 0, 0, *after], np.int64)
        mode = MODES[layer.padding_mode]
        nodes.append(helper.make_node("Pad", [source, pads], [padded], mode=mode))
        source = padded
    if transposed:
        attributes["output_padding"] = list(layer.output_padding)
    op = "ConvTranspose" if transposed else "Conv"
    nodes.append(helper.make_node(op, [source, weight], [out], **attributes))
    return nodes, constants


def _sides(layer: _ConvNd, dims: int) -> tuple[list[int], list[int]]:
    if layer.padding == "valid":
        return [0] * dims, [0] * dims
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [size // 2 for size in total], [size - size // 2 for size in total]
    sizes = [int(size) for size in layer.padding]
    return sizes, sizes


def of_resnet(model: nn.Module, shape: Sequence[int]) -> onnx.ModelProto:
    """A torchvision ResNet, one node for each of its modules and additions."""
    traced = fx.symbolic_trace(model)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    for node in traced.graph.nodes:
        sources = [str(item) for item in node.args if isinstance(item, fx.Node)]
        if node.op == "call_module":
            module, name = traced.get_submodule(str(node.target)), str(node.target)
            if isinstance(module, nn.Conv2d):
                more, weights = _nodes(module, sources[0], f"{name}.weight", str(node))
                nodes += more
                constants |= weights
                continue
            op, names, attributes = _simple(module, name)
            tensors = {key: module.state_dict()[key.rpartition(".")[2]].numpy() for key in names}
            constants |= tensors
            sources += names
        elif node.op == "call_function":
            op, attributes = {"add": "Add", "flatten": "Flatten"}[node.target.__name__], {}
        else:
            continue
        nodes.append(helper.make_node(op, sources, [str(node)], **attributes))
    return graph(nodes, {"x": list(shape)}, constants)


def _simple(module: nn.Module, name: str) -> tuple[str, list[str], dict[str, Any]]:
    """Operator, names of its constants, attributes."""
    if isinstance(module, nn.BatchNorm2d):
        keys = ("weight", "bias", "running_mean", "running_var")
        return "BatchNormalization", [f"{name}.{key}" for key in keys], {}
    if isinstance(module, nn.Linear):
        return "Gemm", [f"{name}.weight", f"{name}.bias"], {"transB": 1}
    if isinstance(module, nn.MaxPool2d):
        return "MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return {nn.ReLU: "Relu", nn.AdaptiveAvgPool2d: "GlobalAveragePool"}[type(module)], [], {}
