"""An exported file as an fx graph again, on which passes rewrite and torch trains.

Each node of ONNX is a call of a function from ``st3fx.quantization.torch_ops`` that has the name of
its output; each constant is a ``get_attr``. Real numbers are buffers, which move with the module;
whole numbers and truth values are plain attributes, which stay on the CPU as shapes do.
"""

from __future__ import annotations

import copy
import operator as python_operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from st3fx.errors import QuantizeError
from st3fx.passes.onnx.normal_form import normal_form, open_inputs
from st3fx.quantization import torch_ops


@dataclass(frozen=True)
class TorchGraph:
    """A file as a module.

    Attributes:
        module: Takes the inputs of the file in its order; gives a dict of outputs by name.
        inputs: Their names.
        constants: Name of each constant of the file -> name of the attribute that holds it.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    constants: Mapping[str, str]


def to_torch(model: onnx.ModelProto) -> TorchGraph:
    """Build the graph of a file.

    Raises:
        QuantizeError: For an operator that torch does not compute here.
    """
    proto = normal_form(copy.deepcopy(model)).model
    root, graph = nn.Module(), fx.Graph()
    values: dict[str, fx.Node] = {}
    inputs = tuple(item.name for item in open_inputs(proto.graph))
    for name in inputs:
        values[name] = graph.placeholder(_identifier(name, root))
    constants = {}
    for item in proto.graph.initializer:
        attribute = constants[item.name] = _identifier(item.name, root)
        _put(root, attribute, torch.from_numpy(numpy_helper.to_array(item).copy()))
        values[item.name] = graph.get_attr(attribute)
    for node in proto.graph.node:
        _insert(root, graph, node, values)
    graph.output({item.name: values[item.name] for item in proto.graph.output})
    graph.eliminate_dead_code()
    graph.lint()
    return TorchGraph(fx.GraphModule(root, graph), inputs, constants)


def _identifier(name: str, root: nn.Module) -> str:
    """A name for an attribute; of several that would be the same, each gets a number."""
    plain = "value_" + re.sub(r"\W", "_", name)
    number, found = 0, plain
    while hasattr(root, found):
        number += 1
        found = f"{plain}_{number}"
    return found


def _put(root: nn.Module, name: str, value: Tensor) -> None:
    if value.is_floating_point():
        root.register_buffer(name, value)
    else:
        setattr(root, name, value)


def _insert(
    root: nn.Module, graph: fx.Graph, node: onnx.NodeProto, values: dict[str, fx.Node]
) -> None:
    """Add what a node computes."""
    attributes = {item.name: _attribute(item) for item in node.attribute}
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    function = None
    if node.domain in ("", "ai.onnx"):
        if node.op_type == "Split" and len(names) == 1:
            attributes.setdefault("num_outputs", len(node.output))
        function = torch_ops.operator(node.op_type, attributes, len(names))
    if function is None:
        domain = f"{node.domain}." if node.domain else ""
        how = ", ".join(f"{key} = {value!r}" for key, value in attributes.items())
        raise QuantizeError(
            f"--finetune cannot train through {node.name or node.output[0]}, {domain}"
            f"{node.op_type}({how}): leave --finetune out, which quantizes as well"
        )
    for key, value in attributes.items():
        if isinstance(value, Tensor):  # code has no word for one
            name = _identifier(f"{node.output[0]}_{key}", root)
            setattr(root, name, value)
            attributes[key] = graph.get_attr(name)
    arguments = tuple(values[name] if name else None for name in names)
    label = re.sub(r"\W", "_", node.output[0])
    call = graph.create_node("call_function", function, arguments, attributes, name=label)
    values[node.output[0]] = call
    if node.op_type == "Split":
        for index, name in enumerate(node.output):
            values[name] = graph.call_function(python_operator.getitem, (call, index))


def _attribute(item: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(item)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return list(value) if isinstance(value, list | tuple) else value
