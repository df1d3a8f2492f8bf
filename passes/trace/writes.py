"""Writes of traced code to the parameters of its module: nodes, which later reads depend on.

The module's own forward with effective weights in place of its parameters would lose them, and a
threshold in front of them would meet other values than the product does. So nothing that is
written to has its threshold right after the parameter: it stands after the writes, as after any
other computation of a weight, or the weight stays dense.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx

from st3fx.errors import TraceError
from st3fx.graphs import in_place
from st3fx.graphs.in_place import after, assign_data

_BY_OPERATOR = (
    in_place.iadd, in_place.isub, in_place.imul, in_place.itruediv, operator.setitem, assign_data,
)  # fmt: skip


class Writes:
    """The writes of one trace.

    Attributes:
        nodes: What writes -> full name of the parameter, in order.
    """

    def __init__(self, parameters: dict[str, Tensor], create: Callable[..., fx.Proxy]) -> None:
        """Begin without any.

        Args:
            parameters: Those of the traced module, by name.
            create: Makes a node.
        """
        self.nodes: dict[fx.Node, str] = {}
        self._parameters, self._create = parameters, create

    def note(self, node: fx.Node) -> None:
        """A node was made."""
        for written in _written(node):
            source = source_of(written)
            if source.op == "get_attr" and str(source.target) in self._parameters:
                self.nodes[node] = str(source.target)

    def count(self, name: str) -> int:
        """Count the writes to a parameter."""
        return sum(written == name for written in self.nodes.values())

    def current(self, name: str, parameter: fx.Proxy) -> fx.Proxy:
        """What code that reads a parameter now gets."""
        writes = [node for node, written in self.nodes.items() if written == name]
        if not writes:
            return parameter
        return self._create("call_function", after, (parameter, *map(fx.Proxy, writes)), {})

    def assign(self, proxy: fx.Proxy, value: Any) -> None:
        """``proxy.data = value``.

        Raises:
            TraceError: If it is neither a parameter nor a buffer that is given a new tensor.
        """
        node = proxy.node
        if node.op == "call_function" and node.target is after:
            node = node.args[0]  # type: ignore[assignment]
        if node.op != "get_attr" or not isinstance(value, fx.Proxy):
            raise TraceError("sets .data of a tensor while it runs")
        self._create("call_function", assign_data, (proxy, value), {})


def writes_in(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Parameter or buffer -> the nodes of a graph that write to it, in order."""
    found: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        for written in _written(node):
            source = source_of(written)
            if source.op == "get_attr":
                found.setdefault(str(source.target), []).append(node)
    return found


def _written(node: fx.Node) -> Iterable[fx.Node]:
    """The values that a node changes in place."""
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        yield out
    if node.op not in ("call_function", "call_method") or not node.args:
        return
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__") and not _is_of_python(target)
    if named or target in _BY_OPERATOR:
        first = node.args[0]
        given = first if isinstance(first, list | tuple) else [first]
        yield from (value for value in given if isinstance(value, fx.Node))


def _is_of_python(target: Any) -> bool:
    """``operator.and_`` and the like are named so for Python's sake."""
    return getattr(target, "__module__", "") == "_operator"


def source_of(node: fx.Node) -> fx.Node:
    """What a value is a view of, as far as it is the first argument all the way."""
    while node.op in ("call_function", "call_method") and node.args:
        first = node.args[0]
        if not isinstance(first, fx.Node) or not _may_be_view(node):
            break
        node = first
    return node


def _may_be_view(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _VIEWS or name.endswith("_")


_VIEWS = frozenset(
    {
        "getattr", "getitem", "detach", "view", "view_as", "reshape", "reshape_as", "flatten",
        "unflatten", "ravel", "t", "transpose", "swapaxes", "swapdims", "permute", "movedim",
        "moveaxis", "select", "narrow", "slice", "squeeze", "unsqueeze", "expand", "expand_as",
        "diagonal", "chunk", "split", "unbind", "tensor_split", "hsplit", "vsplit", "unfold",
        "as_strided", "alias", "adjoint", "real", "imag", "view_as_real", "view_as_complex",
        "contiguous", "to", "type_as", "float", "double", "half", "bfloat16",
        "iadd", "isub", "imul", "itruediv", "after", "assign_data",
    }
)  # fmt: skip
"""What may give the memory of its first argument."""
