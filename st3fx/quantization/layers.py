"""Which layers a file has, and which of its nodes run in integers.

A layer is a product with a constant weight. Between layers the operators that ONNX Runtime runs on
8-bit integers do so where they lie between such: additions of a residual, concatenations, pools,
whatever only moves values. Softmax, normalisations and what has a constant operand stay in fp32:
there 8 bits cost accuracy, and no integer kernel gains time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from st3fx.passes.onnx.normal_form import bodies
from st3fx.passes.onnx.values import Array

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""What ONNX Runtime multiplies in integers on a CPU."""

DYNAMIC_PRODUCTS = ("MatMul",)
"""The same where activations are rounded call by call: it has a kernel for convolutions too, which
reads an image twice more to find its range."""

FLOAT_OUT = ("Gemm", "MatMul")
"""Products whose kernels give fp32: what follows them sees no second rounding."""

ACTIVATIONS = ("Relu", "Clip")
"""What the lower end of an integer's range does by itself."""

CARRIERS = frozenset((
    "Add", "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Mul",
    "Pad", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
))  # fmt: skip
"""What ONNX Runtime runs on integers where its neighbours are."""

ARITHMETIC = ("Add", "Concat", "Mul")
"""Carriers of which every operand is rounded: none may be a constant."""


@dataclass(frozen=True)
class Layer:
    """A weight of two dimensions or more.

    Attributes:
        name: Of the parameter.
        constant: Name of the initializer, which may be a copy.
        op: Operator that reads it.
        nodes: Names of the nodes that multiply with it.
        shape: As the initializer has it.
        axis: Dimension of its output channels.
        weights: Scalars in it.
        zeros: Zeros among them.
        reason: Why it cannot be in integers; empty where it can.
    """

    name: str
    constant: str
    op: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    axis: int
    weights: int
    zeros: int
    reason: str = ""


def find_layers(
    graph: onnx.GraphProto, names: dict[str, str], products: Collection[str] = PRODUCTS
) -> tuple[Layer, ...]:
    """The weights of a graph, in the order in which nodes read them.

    Args:
        graph: Every node has a name.
        names: Name of an initializer -> that of the parameter that it is a copy of.
        products: Types of the operators that may multiply in integers.
    """
    constants = {item.name: item for item in graph.initializer if len(item.dims) > 1}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in constants:
                readers.setdefault(name, []).append((node, index))
    return tuple(
        _layer(constants[name], readers[name], names.get(name, name), products)
        for name in readers
        if constants[name].data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )


def _layer(
    constant: onnx.TensorProto,
    readers: list[tuple[onnx.NodeProto, int]],
    name: str,
    products: Collection[str],
) -> Layer:
    array = numpy_helper.to_array(constant)
    reasons = (_obstacle(node, index, array, products) for node, index in readers)
    axes = {_axis(node) for node, _ in readers}
    reason = next((reason for reason in reasons if reason), "")
    if not reason and len(axes) > 1:
        reason = "its uses disagree about its output channels"
    return Layer(
        name=name,
        constant=constant.name,
        op=readers[0][0].op_type,
        nodes=tuple(node.name for node, _ in readers),
        shape=tuple(constant.dims),
        axis=_axis(readers[0][0]),
        weights=array.size,
        zeros=array.size - int(np.count_nonzero(array)),
        reason=reason,
    )


def _obstacle(node: onnx.NodeProto, index: int, array: Array, products: Collection[str]) -> str:
    """Why a reader of a weight cannot multiply in integers."""
    if node.op_type not in PRODUCTS or node.domain:
        return f"{node.op_type} has no kernel for integers"
    if node.op_type not in products:
        return f"the input of a {node.op_type} is not rounded call by call"
    if index != 1:
        return f"it is the first operand of its {node.op_type}"
    if node.op_type == "MatMul" and array.ndim != 2:
        return "it is a batch of matrices"
    if node.op_type == "Gemm" and _attribute(node, "transA", 0):
        return "its Gemm transposes the activation"
    if not np.isfinite(array).all():
        return "it is not finite"
    return ""


def _axis(node: onnx.NodeProto) -> int:
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0)):
        return 1
    return 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def integer_nodes(graph: onnx.GraphProto, layers: Collection[Layer]) -> list[str]:
    """Names of the nodes that run in integers, if these layers do.

    A carrier does where one of its operands comes from such a node and one of its readers is such a
    node: alone among others it would round for nothing.
    """
    constants = {item.name for item in graph.initializer}
    products = {name for layer in layers for name in layer.nodes}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in (*node.input, *(n for body in bodies(node) for n in _outer(body))):
            readers.setdefault(name, []).append(node)

    def gives(name: str, chosen: Collection[str]) -> bool:
        maker = makers.get(name)
        return maker is not None and maker.name in chosen and maker.op_type not in FLOAT_OUT

    chosen = products | {node.name for node in graph.node if _carries(node, constants)}
    while True:
        left = {
            node.name
            for node in graph.node
            if node.name in chosen and node.name not in products
            and (
                not any(gives(name, chosen) for name in node.input)
                # An activation of a layer goes into its rounding, whoever reads it.
                or not (
                    node.op_type in ACTIVATIONS
                    or any(r.name in chosen for out in node.output for r in readers.get(out, ()))
                )
            )
        }  # fmt: skip
        if not left:
            return [node.name for node in graph.node if node.name in chosen]
        chosen -= left


def _carries(node: onnx.NodeProto, constants: Collection[str]) -> bool:
    if node.domain or node.op_type not in CARRIERS.union(ACTIVATIONS):
        return False
    return node.op_type not in ARITHMETIC or not any(name in constants for name in node.input)


def _outer(body: onnx.GraphProto) -> Iterator[str]:
    for node in body.node:
        yield from node.input
        for inner in bodies(node):
            yield from _outer(inner)
