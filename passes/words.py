"""A node's value as an expression of a module's inputs, for people."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from st3fx.core import in_place

_SIGNS = {
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.add: "+", operator.sub: "-", operator.mul: "*",
    in_place.iadd: "+", in_place.isub: "-", in_place.imul: "*", in_place.itruediv: "/",
    operator.truediv: "/", operator.floordiv: "//", operator.mod: "%", operator.pow: "**",
}  # fmt: skip

_DEPTH = 6
"""Below this, a value is called by its node's name."""


def expression(node: fx.Node, depth: int = _DEPTH) -> str:
    """For example ``x.shape[0] > 4``."""
    if not depth or node.op in ("placeholder", "get_attr") or not node.args:
        if node.op in ("placeholder", "get_attr"):
            return str(node.meta.get("argument", node.target))
        return node.name
    _, *rest = [_argument(argument, depth - 1) for argument in node.args]
    if node.target in _SIGNS and rest:
        right = _owner(node.args[1], depth - 1)
        return f"{_owner(node.args[0], depth - 1)} {_SIGNS[node.target]} {right}"
    owner = _owner(node.args[0], depth - 1)
    if node.op == "call_method":
        named = [f"{key}={_argument(value, depth - 1)}" for key, value in node.kwargs.items()]
        return f"{owner}.{node.target}({', '.join([*rest, *named])})"
    if node.target is getattr:
        return f"{owner}.{node.args[1]}"
    if node.target is operator.getitem:
        return f"{owner}[{rest[0]}]"
    return node.name


def _owner(value: Any, depth: int) -> str:
    """What stands before a dot or beside a sign."""
    words = _argument(value, depth)
    is_operation = isinstance(value, fx.Node) and value.target in _SIGNS and depth > 0
    return f"({words})" if is_operation else words


def _argument(value: Any, depth: int) -> str:
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        start, stop, step = ("" if part is None else _argument(part, depth) for part in parts)
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if isinstance(value, tuple | list):
        return ", ".join(_argument(item, depth) for item in value)
    return expression(value, depth) if isinstance(value, fx.Node) else str(value)
