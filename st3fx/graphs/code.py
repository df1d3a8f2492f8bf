"""Generated code that reads modules and parameters of any name: ``class``, ``a"b``, ``ﬁ``.

torch.fx writes ``self.class`` for a module of that name, and quotes names as they are.

Graphs as plain data, for pickles: nodes by number, functions by name.

torch.fx pickles the code of a graph and traces it again, which fails where the code makes a tensor
of a size that another node computed.
"""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.graph import _format_target


def with_any_names(graph: fx.Graph) -> fx.Graph:
    """Let the code of a graph read its targets, whatever they are called; gives the graph."""
    rewritten = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module") and not all(
            map(_is_plain, node.target.split("."))
        ):
            rewritten[_format_target("self", node.target)] = _read("self", node.target)
    if rewritten:
        graph.on_generate_code(lambda earlier: _after(earlier, rewritten))
    return graph


def _after(
    earlier: Callable[[list[str]], list[str]] | None, rewritten: dict[str, str]
) -> Callable[[list[str]], list[str]]:
    """Change statements that read a target: ``name = self.class`` or ``name = self.class(x)``."""

    def transform(body: list[str]) -> list[str]:
        lines = body if earlier is None else earlier(body)
        return [_changed(line, rewritten) for line in lines]

    return transform


def _changed(line: str, rewritten: dict[str, str]) -> str:
    name, assigns, value = line.partition(" = ")
    for plain, right in rewritten.items():
        if assigns and (value == plain or value.startswith(f"{plain}(")):
            return f"{name} = {right}{value[len(plain) :]}"
    return line


@functools.lru_cache(maxsize=4096)
def _is_plain(part: str) -> bool:
    """Whether torch.fx writes a name as it has to be.

    It writes what is no identifier between quotes; the parser changes some letters of identifiers.
    """
    if part.isidentifier():
        return part.isascii() and not keyword.iskeyword(part)
    return part.isprintable() and not set(part) & set('"\\')


def _read(base: str, target: str) -> str:
    """The expression that reads a target."""
    for part in target.split("."):
        simple = part.isidentifier() and _is_plain(part)
        base = f"{base}.{part}" if simple else f"getattr({base}, {part!r})"
    return base


def has_plain_names(node: fx.Node) -> bool:
    """Whether the names that a node gives or asks for can stand in code: not ``f(class=x)``."""
    names = list(node.kwargs)
    if node.op == "call_function" and node.target is getattr and len(node.args) > 1:
        names.append(str(node.args[1]))
    return all(name.isidentifier() and not keyword.iskeyword(name) for name in names)


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
