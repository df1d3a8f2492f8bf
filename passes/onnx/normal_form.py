"""Brings a graph that was read from a file into the one form that the rest works on.

Files differ in ways that mean nothing: weights are initializers or Constant nodes (with a tensor, a
sparse tensor, numbers or texts), here or in the bodies of If, Loop and Scan; nodes may stand in any
order, which ONNX forbids and ONNX Runtime runs; two bodies may use one name for two values; a model
may have functions of its own. In normal form there are no such functions, every constant is an
initializer of the main graph, every name is that of one value, and nodes come after what they read.

This is a function on protobuf messages and no pass of onnx_ir, which would drop sparse initializers
and takes it for granted that nodes are in order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import inliner, numpy_helper

from st3fx.errors import few
from st3fx.passes.onnx.values import Array

BUILT_IN = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training",
            "com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental",
            "com.ms.internal.nhwc", "org.pytorch.aten")  # fmt: skip
"""Domains whose operators ONNX Runtime brings along."""


@dataclass(frozen=True)
class NormalForm:
    """A model in normal form.

    Attributes:
        model: The model itself.
        constants: Names of the initializers that were Constant nodes.
    """

    model: onnx.ModelProto
    constants: frozenset[str]


def normal_form(model: onnx.ModelProto) -> NormalForm:
    """The same model in normal form; the given one may be changed.

    Args:
        model: With its weights.

    Raises:
        ValueError: When nodes depend on each other in a circle, or two give one value.
    """
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    taken = set(_defined(graph))
    for inner in _bodies(graph):
        _rename(inner, {}, taken)
    constants: set[str] = set()
    _lift(graph, graph, constants)
    for inner in _bodies(graph):
        _lift(inner, graph, constants)
    _sort(graph)
    return NormalForm(model, frozenset(constants))


def open_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a call gives: old files list weights among them too."""
    constants = {item.name for item in graph.initializer}
    constants |= {item.values.name for item in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in constants]


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def dense(tensor: onnx.SparseTensorProto) -> Array:
    """The values of a sparse tensor, with its zeros."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    array = np.zeros(tuple(tensor.dims), values.dtype)
    # Indices are positions in the flat tensor, or one row of coordinates for each value.
    if indices.ndim == 1:
        array.reshape(-1)[indices] = values
    else:
        array[tuple(indices.T)] = values
    return array


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of all bodies in it."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def reads(node: onnx.NodeProto) -> list[str]:
    """All values that a node reads, those that only its bodies do among them, each once."""
    names = [name for name in node.input if name]
    for body in bodies(node):
        names += _free(body)
    return list(dict.fromkeys(names))


def defined(graph: onnx.GraphProto) -> list[str]:
    """All values that a graph and the bodies in it define."""
    return [*_defined(graph), *(name for inner in _bodies(graph) for name in defined(inner))]


def _free(graph: onnx.GraphProto) -> list[str]:
    """Values of outer graphs that a body reads."""
    own = set(_defined(graph))
    names = [name for node in graph.node for name in reads(node)]
    return [name for name in (*names, *(v.name for v in graph.output)) if name not in own]


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        yield from bodies(node)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (item.name for item in graph.initializer)
    yield from (item.values.name for item in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _rename(graph: onnx.GraphProto, outer: Mapping[str, str], taken: set[str]) -> None:
    """Give values of a body names that no other value has."""
    names = dict(outer)
    for name in dict.fromkeys(_defined(graph)):
        names[name] = _new(name, taken)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names[sparse.values.name]
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)
    for inner in _bodies(graph):
        _rename(inner, names, taken)


def _new(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _lift(graph: onnx.GraphProto, main: onnx.GraphProto, constants: set[str]) -> None:
    """Make the constants of a graph initializers of the main one."""
    if graph is not main:
        main.initializer.extend(graph.initializer)
        main.sparse_initializer.extend(graph.sparse_initializer)
        del graph.initializer[:], graph.sparse_initializer[:]
        for inner in _bodies(graph):
            _lift(inner, main, constants)
    kept, lifted = [], set()
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            _add(node, main)
            lifted.add(node.output[0])
        else:
            kept.append(node)
    constants |= lifted
    if graph is not main:
        # The result of a body must be of its own.
        own = set(_defined(graph)) - lifted
        for value in graph.output:
            if value.name not in own:
                inner_name = f"{value.name}_result"
                kept.append(onnx.helper.make_node("Identity", [value.name], [inner_name]))
                value.name = inner_name
    if len(kept) != len(graph.node) or graph is not main:
        _replace_nodes(graph, kept)


def _add(node: onnx.NodeProto, main: onnx.GraphProto) -> None:
    """The value of a Constant node as an initializer."""
    name = node.output[0]
    attribute = next((item for item in node.attribute if item.name in _VALUES), None)
    if attribute is None:
        raise ValueError(f"the Constant node {name!r} has no value")
    value: Any = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "sparse_value":
        sparse = main.sparse_initializer.add()
        sparse.CopyFrom(value)
        sparse.values.name = name
        return
    tensor = main.initializer.add()
    if attribute.name == "value":
        tensor.CopyFrom(value)
        tensor.name = name
        return
    tensor.CopyFrom(numpy_helper.from_array(np.array(value, _VALUES[attribute.name]), name))


_VALUES = {
    "value": None, "sparse_value": None, "value_float": np.float32, "value_floats": np.float32,
    "value_int": np.int64, "value_ints": np.int64, "value_string": np.object_,
    "value_strings": np.object_,
}  # fmt: skip
"""What a Constant node may hold, and the type of numbers."""


def _sort(graph: onnx.GraphProto) -> None:
    """Bring nodes into an order in which each comes after what it reads; the old one if it is."""
    for inner in _bodies(graph):
        _sort(inner)
    nodes = list(graph.node)
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in maker:
                raise ValueError(f"two nodes give the value {name!r}")
            maker[name] = index
    needs = [{maker[name] for name in reads(node) if name in maker} for node in nodes]
    if all(max(need, default=-1) < index for index, need in enumerate(needs)):
        return
    _replace_nodes(graph, [nodes[index] for index in _order(needs, nodes)])


def _order(needs: list[set[int]], nodes: list[onnx.NodeProto]) -> Iterator[int]:
    """Places of nodes, each after those that it needs, as near to the old order as that can be."""
    left = [len(need) for need in needs]
    followers: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for other in need:
            followers[other].append(index)
    ready = [index for index, count in enumerate(left) if not count]
    heapq.heapify(ready)
    done = 0
    while ready:
        index = heapq.heappop(ready)
        done += 1
        yield index
        for follower in followers[index]:
            left[follower] -= 1
            if not left[follower]:
                heapq.heappush(ready, follower)
    if done < len(needs):
        stuck = (node for node, count in zip(nodes, left, strict=True) if count)
        circle = (node.name or next(iter(node.output), node.op_type) for node in stuck)
        raise ValueError(f"nodes wait for each other in a circle: {few(circle)}")


def _replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
