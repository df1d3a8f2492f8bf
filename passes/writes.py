"""Nodes of a trace that write to a parameter: no graph may hold them.

What a graph writes to would be the effective weight, or a copy of it; the module's own forward
writes to the weight itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx

from st3fx.core import in_place
from st3fx.errors import TraceError

_BY_OPERATOR = (
    in_place.iadd, in_place.isub, in_place.imul, in_place.itruediv, operator.setitem,
)  # fmt: skip


def require_reading(
    op: str, target: Any, args: Any, kwargs: Any, parameter_of: Callable[[str], Tensor | None]
) -> None:
    """Refuse a node that writes to a parameter that could be a weight.

    Args:
        op: Of the node that is about to be made.
        target: Its target.
        args: Its arguments, with nodes in them.
        kwargs: Its named arguments.
        parameter_of: Target of a ``get_attr`` -> the parameter, ``None`` for any other tensor.

    Raises:
        TraceError: With the parameter's name.
    """
    for node in _written(op, target, args, kwargs):
        source = _source(node)
        parameter = parameter_of(str(source.target)) if source.op == "get_attr" else None
        if parameter is not None and parameter.dim() > 1:
            raise TraceError(f"writes to {source.target} while it runs")


def _written(op: str, target: Any, args: Any, kwargs: Any) -> Iterable[fx.Node]:
    """The values that a node changes in place."""
    out = kwargs.get("out")
    if isinstance(out, fx.Node):
        yield out
    if op not in ("call_function", "call_method") or not args:
        return
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__") and not _is_of_python(target)
    if named or target in _BY_OPERATOR:
        given = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        yield from (node for node in given if isinstance(node, fx.Node))


def _is_of_python(target: Any) -> bool:
    """``operator.and_`` and the like are named so for Python's sake."""
    return getattr(target, "__module__", "") == "_operator"


def _source(node: fx.Node) -> fx.Node:
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
        "contiguous", "to", "type_as", "float", "double", "half", "bfloat16", "numpy", "data",
        "iadd", "isub", "imul", "itruediv",
    }
)  # fmt: skip
"""What may give the memory of its first argument."""
