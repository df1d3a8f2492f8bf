"""A node's value as an expression of a module's inputs, for people."""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

from torch import fx

from st3fx.graphs import in_place

_SIGNS = {
    operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=", operator.add: "+", operator.sub: "-", operator.mul: "*",
    in_place.iadd: "+", in_place.isub: "-", in_place.imul: "*", in_place.itruediv: "/",
    operator.truediv: "/", operator.floordiv: "//", operator.mod: "%", operator.pow: "**",
}  # fmt: skip

_STRENGTH = {"+": 2, "-": 2, "*": 3, "/": 3, "//": 3, "%": 3, "**": 5}
"""Of signs; that of comparisons is 1."""

_ATOM = 6
"""The strength of what binds more tightly than any sign: a dot, a bracket."""

_DEPTH = 6
"""Below this, a value is called by its node's name."""


Known: TypeAlias = dict[tuple[fx.Node, int], str]
"""What nodes were called already: in a long recurrence each is part of many others."""


def expression(node: fx.Node, known: Known | None = None, depth: int = _DEPTH) -> str:
    """For example ``x.shape[0] > 4``.

    Args:
        node: Of a graph that does not change.
        known: Kept from one call to the next.
        depth: How many operators deep.
    """
    known = {} if known is None else known
    if (node, depth) not in known:
        known[node, depth] = _expression(node, known, depth)
    return known[node, depth]


def _expression(node: fx.Node, known: Known, depth: int) -> str:
    if node.op in ("placeholder", "get_attr"):
        return str(node.meta.get("argument", node.target))
    if not depth or not node.args:
        return node.name
    _, *rest = [_argument(argument, known, depth - 1) for argument in node.args]
    if node.target in _SIGNS and rest:
        sign = _SIGNS[node.target]
        strength = _STRENGTH.get(sign, 1)
        same = strength in (2, 3)  # from left to right; ``a < b < c`` and powers mean otherwise
        left = _operand(node.args[0], known, depth - 1, strength if same else strength + 1)
        return f"{left} {sign} {_operand(node.args[1], known, depth - 1, strength + 1)}"
    owner = _operand(node.args[0], known, depth - 1, _ATOM)
    if node.target is operator.neg:
        return f"-{owner}"
    if node.op == "call_method":
        named = [f"{key}={_argument(v, known, depth - 1)}" for key, v in node.kwargs.items()]
        return f"{owner}.{node.target}({', '.join([*rest, *named])})"
    if node.target is getattr:
        return f"{owner}.{node.args[1]}"
    if node.target is operator.getitem:
        return f"{owner}[{rest[0]}]"
    return node.name


def _operand(value: Any, known: Known, depth: int, least: int) -> str:
    """What stands before a dot or beside a sign, in parentheses if it binds less than ``least``."""
    words = _argument(value, known, depth)
    if not isinstance(value, fx.Node):
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"({words}{comma})" if isinstance(value, tuple) else words
    strength = _ATOM
    if depth > 0 and value.args:
        if value.target is operator.neg:
            strength = 4
        elif value.target in _SIGNS:
            strength = _STRENGTH.get(_SIGNS[value.target], 1)
    return f"({words})" if strength < least else words


def _argument(value: Any, known: Known, depth: int) -> str:
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        words = ["" if part is None else _argument(part, known, depth) for part in parts]
        start, stop, step = words
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if isinstance(value, tuple | list):
        return ", ".join(_argument(item, known, depth) for item in value)
    return expression(value, known, depth) if isinstance(value, fx.Node) else str(value)
