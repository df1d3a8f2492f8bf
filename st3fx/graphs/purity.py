"""Which nodes may be run to see what they give, and what they would change or need.

Data of a graph's nodes that can be known without running the model.

A causal mask is made of sizes alone; whether a padding mask has a gap follows from an argument of
the call. Such data are computed by themselves, from integers and booleans only: these are masks,
lengths and indices, never activations, and cost next to nothing beside the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree

from st3fx.graphs import in_place
from st3fx.graphs.code import NodeReference, map_leaves
from st3fx.graphs.regions import is_autocast_border

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


_MOST = 1 << 22
"""Numbers in a tensor that is computed to answer a question."""


class Unknown:
    """In place of a value that depends on data or cannot be had."""

    def __init__(self, reason: str) -> None:
        """Say why, in words."""
        self.reason = reason


class DataError(Exception):
    """An answer depends on data that cannot be looked at."""


def readable(value: Any) -> Tensor | None:
    """A tensor of integers or booleans that may be looked at; ``None`` for anything else."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return None
    if value.is_meta or is_fake(value) or value.numel() > _MOST:
        return None
    return value.detach()


class _Step(NamedTuple):
    """An operator with its arguments, in which other steps stand by number."""

    is_method: bool
    target: Any
    args: Any
    kwargs: Any


class DataProgram:
    """How to compute the data of some nodes of a graph: operators in their order."""

    def __init__(
        self,
        values: Mapping[fx.Node, Any],
        inputs: Mapping[fx.Node, int],
        is_written: Callable[[fx.Node], bool],
    ) -> None:
        """Prepare; :meth:`add` plans nodes.

        Args:
            values: What the nodes hold, without data.
            inputs: Placeholders whose data may be looked at -> which of the call's tensors.
            is_written: Whether a node's value may have been written to.
        """
        self._values = values
        self._inputs = inputs
        self._is_written = is_written
        self._numbers: dict[fx.Node, int] = {}
        self._steps: list[_Step | int] = []
        self._reading: set[int] = set()

    def add(self, node: fx.Node) -> Any:
        """What stands for a node in the arguments of others: its value, or a reference.

        Raises:
            DataError: If its data depend on more than sizes, constants and readable inputs.
        """
        leaves = pytree.tree_leaves(self._values[node])
        if not any(isinstance(leaf, (Tensor, Unknown)) for leaf in leaves):
            return self._values[node]
        if node not in self._numbers:
            if sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor)) > _MOST:
                raise DataError("depends on a large tensor")
            if self._is_written(node):
                raise DataError("depends on a tensor that is written to")
            self._numbers[node] = self._append(node)
        return NodeReference(self._numbers[node])

    def _append(self, node: fx.Node) -> int:
        if node in self._inputs:
            self._reading.add(len(self._steps))
            self._steps.append(self._inputs[node])
            return len(self._steps) - 1
        if not is_repeatable(node):
            raise DataError("depends on the data of a tensor")
        used: list[int] = []

        def known(leaf: Any) -> Any:
            found = self.add(leaf) if isinstance(leaf, fx.Node) else leaf
            used.extend([found.number] if isinstance(found, NodeReference) else [])
            return found

        args, kwargs = map_leaves([node.args, node.kwargs], known)
        if not self._reading.isdisjoint(used):
            self._reading.add(len(self._steps))
        self._steps.append(_Step(node.op == "call_method", node.target, args, kwargs))
        return len(self._steps) - 1

    def reads(self, node: fx.Node) -> bool:
        """Whether a node's data depend on the call's tensors.

        Raises:
            DataError: As :meth:`add`.
        """
        stands = self.add(node)
        return isinstance(stands, NodeReference) and stands.number in self._reading

    def read(self, tensors: Sequence[Any]) -> list[Any]:
        """Those of a call's tensors that the planned steps look at."""
        return [tensors[step] for step in self._steps if isinstance(step, int)]

    def data(self, node: fx.Node, known: list[Any], tensors: Sequence[Any]) -> Any:
        """Compute a planned node.

        Args:
            node: It must have been added.
            known: What earlier steps gave; longer afterwards.
            tensors: The call's.
        """
        stands = self.add(node)
        for step in self._steps[len(known) :]:
            known.append(_run(step, known, tensors))
        return known[stands.number] if isinstance(stands, NodeReference) else stands


def _run(step: _Step | int, known: list[Any], tensors: Sequence[Any]) -> Any:
    if not isinstance(step, _Step):
        return tensors[step]

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and leaf.type == "meta":
            return torch.device("cpu")  # of a model without values: positions have some
        return known[leaf.number] if isinstance(leaf, NodeReference) else leaf

    args, kwargs = map_leaves([step.args, step.kwargs], resolve)
    if step.is_method:
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    return step.target(*args, **kwargs)
