"""Which tensors of a graph have one layout, and where it would have to change.

Values that an operator wants in the same layout form a *class*. A class is blocked or not as a
whole. What stays a node of ONNX, and the graph itself, wants images as ONNX has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.role import Role
from st3fx.passes.onnx.values import image


@dataclass(frozen=True)
class Classes:
    """Values by class.

    Attributes:
        of: Value -> its class.
        members: Class -> its values.
    """

    of: Mapping[ir.Value, int]
    members: Mapping[int, tuple[ir.Value, ...]]


@dataclass(frozen=True)
class Change:
    """A value that is needed in the other layout too.

    Attributes:
        value: As it is made.
        to_blocked: Which way.
    """

    value: ir.Value
    to_blocked: bool

    @property
    def nbytes(self) -> int:
        """The memory that one image of it takes."""
        picture = image(self.value)
        return picture.nbytes if picture is not None else 0


def classes(roles: Mapping[ir.Node, Role]) -> Classes:
    """Unite the values that operators tie."""
    parent: dict[ir.Value, ir.Value] = {}

    def root(value: ir.Value) -> ir.Value:
        parent.setdefault(value, value)
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

    for role in roles.values():
        values = [*role.images, *([role.output] if role.output is not None else [])]
        for value in values:
            root(value)
        for other in values[1:] if role.tied else ():
            parent[root(other)] = root(values[0])
    of: dict[ir.Value, int] = {}
    members: dict[int, list[ir.Value]] = {}
    numbers: dict[ir.Value, int] = {}
    for value in parent:
        number = numbers.setdefault(root(value), len(numbers))
        of[value] = number
        members.setdefault(number, []).append(value)
    return Classes(of, {number: tuple(values) for number, values in members.items()})


@dataclass(frozen=True)
class State:
    """A choice.

    Attributes:
        sparse: Nodes with a weight that get our operator.
        blocked: Classes in the blocked layout.
    """

    sparse: frozenset[ir.Node]
    blocked: frozenset[int]

    def is_blocked(self, value: ir.Value | None, of: Mapping[ir.Value, int]) -> bool:
        """Whether a value is in the blocked layout."""
        return value is not None and of.get(value, -1) in self.blocked


def is_ours(role: Role, state: State, of: Mapping[ir.Value, int]) -> bool:
    """Whether a node becomes our operator.

    A layer with a weight is chosen; what lies between them follows the layout of its tensors.
    """
    if role.is_sparse:
        return role.node in state.sparse
    return bool(role.op) and any(state.is_blocked(v, of) for v in (*role.images, role.output))


def changes(
    roles: Mapping[ir.Node, Role], state: State, classes: Classes, numbers: Collection[int]
) -> list[Change]:
    """The layout changes that a choice needs, in some classes.

    Each value is changed at most once, whatever the number of its readers.
    """
    found, of = [], classes.of
    for number in numbers:
        if number not in state.blocked:
            continue
        for value in classes.members[number]:
            maker = value.producer()
            role = None if maker is None else roles.get(maker)
            if role is None or role.output is not value or not _takes(role, state, of):
                found.append(Change(value, to_blocked=True))
            elif value.is_graph_output() or any(
                not _reads_blocked(value, use.node, roles, state, of) for use in value.uses()
            ):
                found.append(Change(value, to_blocked=False))
    return found


def _takes(role: Role, state: State, of: Mapping[ir.Value, int]) -> bool:
    """Whether a node computes in the layouts that its images have."""
    return not role.op or is_ours(role, state, of)


def _reads_blocked(
    value: ir.Value,
    node: ir.Node,
    roles: Mapping[ir.Node, Role],
    state: State,
    of: Mapping[ir.Value, int],
) -> bool:
    role = roles.get(node)
    return role is not None and value in role.images and _takes(role, state, of)
