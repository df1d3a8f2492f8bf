"""Which nodes may be run to see what they give, and what they would change or need."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import fx

from st3fx.core import in_place
from st3fx.core.regions import is_autocast_border

_PURE = ("torch", "torchvision", "timm", "st3fx", "_operator", "operator", "builtins", "math")
"""Packages whose functions may be run to see what they give."""

_OF_MEMORY = frozenset(
    {
        "stride", "is_contiguous", "storage_offset", "data_ptr", "untyped_storage", "storage",
        "_version", "requires_grad", "is_leaf", "grad", "grad_fn", "retains_grad", "is_pinned",
        "is_shared", "is_inference", "layout",
    }
)  # fmt: skip
"""What a tensor without memory cannot answer for the real one."""


def asks_memory(node: fx.Node) -> bool:
    """Whether a node gives what only a tensor with memory knows."""
    if node.op == "call_method":
        return node.target in _OF_MEMORY
    return node.op == "call_function" and node.target is getattr and node.args[1] in _OF_MEMORY


def is_pure(target: Any) -> bool:
    """Whether a function only computes: an operator, arithmetic, a plain class's constructor."""
    if isinstance(target, type) and (hasattr(target, "_fields") or is_dataclass(target)):
        return True
    package = str(getattr(target, "__module__", None) or "torch").partition(".")[0]
    return package in _PURE


def is_repeatable(node: fx.Node) -> bool:
    """Whether a node can be computed once more, by itself, to see its data."""
    if node.op not in ("call_function", "call_method") or asks_memory(node):
        return False
    if node.op == "call_function" and not is_pure(node.target):
        return False
    name = str(getattr(node.target, "__name__", node.target))
    if any(word in name for word in _RANDOM) or _writes(node) or "out" in node.kwargs:
        return False
    return not any(changes_in_place(user, node) for user in node.users)


_RANDOM = ("rand", "dropout", "normal", "bernoulli", "multinomial", "poisson")
"""In the names of functions that draw numbers."""


def _writes(node: fx.Node) -> bool:
    return bool(node.all_input_nodes) and changes_in_place(node, node.all_input_nodes[0])


def may_write_to(node: fx.Node) -> list[fx.Node]:
    """The values whose data a node may change: those that it is given, unless it only computes."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return [out]
    if node.op == "call_module" or (node.op == "call_function" and not is_pure(node.target)):
        return node.all_input_nodes
    return node.all_input_nodes[:1] if _writes(node) else []


_OF_SIZES = frozenset({"size", "dim", "numel", "ndimension", "is_floating_point", "is_complex"})


def only_computes(node: fx.Node) -> bool:
    """Whether a node computes with sizes and numbers, and can go where nothing uses it."""
    if node.op == "call_method":
        return node.target in _OF_SIZES
    if node.op != "call_function" or node.target is operator.setitem:
        return False
    module = getattr(node.target, "__module__", "")
    return module in ("_operator", "math") or node.target is getattr


def changes_in_place(node: fx.Node, value: fx.Node) -> bool:
    """Whether a node may change the shape or the items of a value that others hold."""
    if not node.args or node.args[0] is not value:
        return False
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name in _CONTAINER_CHANGES
    name = getattr(node.target, "__name__", "")
    module = getattr(node.target, "__module__", "")
    if module == in_place.__name__ and _is_number(value):
        return False
    if module in ("_operator", in_place.__name__):
        return name in _OPERATORS_IN_PLACE  # and_, not_ and the like are named so for Python's sake
    return name.endswith("_") and not name.endswith("__")


def _is_number(node: fx.Node) -> bool:
    """Whether a node gives a number for sure: a count, or arithmetic with counts."""
    pending, seen = [node], set()
    while pending:
        found = pending.pop()
        if found in seen:
            continue
        seen.add(found)
        if found.op == "call_method" and found.target in ("numel", "dim", "ndimension"):
            continue
        module = getattr(found.target, "__module__", "")
        if found.op != "call_function" or module not in ("_operator", in_place.__name__):
            return False
        if found.target in (operator.getitem, operator.setitem, operator.matmul):
            return False
        if not all(isinstance(argument, (fx.Node, int, float)) for argument in found.args):
            return False
        pending += found.all_input_nodes
    return True


_OPERATORS_IN_PLACE = frozenset(
    {
        "setitem", "delitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "imatmul",
        "ipow", "iand", "ior", "ixor", "ilshift", "irshift", "iconcat",
    }
)  # fmt: skip
_CONTAINER_CHANGES = frozenset({"append", "extend", "insert", "pop", "clear", "update"})


def pruned(graph: fx.Graph, asked: Sequence[fx.Node]) -> fx.Graph:
    """The part of ``graph`` that some nodes are computed from, as a graph that gives these nodes.

    What changes a value in place is part of it, and so is the autocast that changes dtypes.
    """
    needed: set[fx.Node] = set()
    pending = list(asked)
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        pending += node.all_input_nodes
        pending += [user for user in node.users if changes_in_place(user, node)]
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in needed or node.op == "placeholder" or is_autocast_border(node):
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in asked))
    return part
