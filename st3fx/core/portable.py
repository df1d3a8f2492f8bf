"""Graphs as plain data, for pickles: nodes by number, functions by name.

torch.fx pickles the code of a graph and traces it again, which fails where the code makes a tensor
of a size that another node computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class NodeReference:
    """Stands for a node in another's arguments."""

    number: int


@dataclass(frozen=True)
class Overload:
    """An operator of a torch library, which as an object cannot be pickled."""

    namespace: str
    name: str
    overload: str

    @classmethod
    def of(cls, target: Any) -> Any:
        """The name of an operator; any other target as it is."""
        if not isinstance(target, torch._ops.OpOverload):
            return target
        namespace, name = target._schema.name.split("::")
        return cls(namespace, name, target._overloadname)

    def find(self) -> Any:
        """The operator."""
        return getattr(getattr(getattr(torch.ops, self.namespace), self.name), self.overload)


PortableNode = tuple[str, str, Any, Any, Any]
"""Name, op, target, args, kwargs."""


def to_portable(graph: fx.Graph) -> list[PortableNode]:
    """The nodes of ``graph`` in their order, without types and metadata."""
    numbers = {node: NodeReference(number) for number, node in enumerate(graph.nodes)}

    def refer(leaf: Any) -> Any:
        return numbers[leaf] if isinstance(leaf, fx.Node) else Overload.of(leaf)

    def plain(arguments: Any) -> Any:
        return map_leaves(arguments, refer)

    return [
        (node.name, node.op, Overload.of(node.target), plain(node.args), plain(node.kwargs))
        for node in graph.nodes
    ]


def from_portable(nodes: list[PortableNode]) -> fx.Graph:
    """The inverse of :func:`to_portable`."""
    graph = fx.Graph()
    made: list[fx.Node] = []

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, NodeReference):
            return made[leaf.number]
        return leaf.find() if isinstance(leaf, Overload) else leaf

    for name, op, target, *arguments in nodes:
        args, kwargs = map_leaves(arguments, resolve)
        made.append(graph.create_node(op, resolve(target), args, kwargs, name))
    return graph


def map_leaves(value: Any, change: Any) -> Any:
    """Apply ``change`` to everything in nested arguments that is no container.

    Args:
        value: Tuples, lists, dicts and slices, which become plain and new ones.
        change: What is done to anything else, also to nodes.
    """
    if isinstance(value, tuple):
        items = [map_leaves(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_leaves(item, change) for item in value]
    if isinstance(value, dict):
        return {key: map_leaves(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_leaves(item, change) for item in _parts(value)))
    return change(value)


def _parts(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step
