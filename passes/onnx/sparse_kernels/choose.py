"""Chooses sparse or dense for each layer, and a layout for each tensor, by the cost model.

What is minimised is the time of the graph: of each layer by its kernel, and of each change of
layout. Where both choices cost the same, as for pooling or activations, nothing is counted. The
search goes downhill, one layer with its tensors at a time: from all layers that win by themselves,
with all tensors around them in the blocked layout, until no such change helps.

Values that an operator wants in the same layout form a *class*. A class is blocked or not as a
whole. What stays a node of ONNX, and the graph itself, wants images as ONNX has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.role import Role
from st3fx.passes.onnx.values import image
from st3fx.runtime import operators
from st3fx.runtime.costs import Costs, dense_features, seconds, sparse_features

_ROUNDS = 20
_POOLS = (operators.MAX_POOL, operators.AVERAGE_POOL)


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

    A layer with a weight is chosen; what lies between them follows the layout of its tensors. A
    pool follows that of its input: behind a dense convolution ONNX Runtime's own one reads what the
    convolution leaves, and what comes out is smaller, so cheaper to change.
    """
    if role.is_sparse:
        return role.node in state.sparse
    if role.op in _POOLS:
        return state.is_blocked(role.images[0], of)
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


def choose(roles: Mapping[ir.Node, Role], classes: Classes, costs: Costs) -> State:
    """The cheapest choice that the search finds.

    Args:
        roles: Node -> what it can become.
        classes: Values by layout.
        costs: The constants of the model.
    """
    layers = [role for role in roles.values() if role.is_sparse]
    sparse = frozenset(
        role.node for role in layers
        if sparse_seconds(role, costs, blocked=True) < dense_seconds(role, costs)
    )  # fmt: skip
    touched = {
        number for role in layers if role.node in sparse
        for value in (*role.images, role.output)
        if value is not None and (number := classes.of.get(value)) is not None
    }  # fmt: skip
    state = _Search(roles, classes, costs).downhill(State(sparse, frozenset(touched)))
    return state if state.sparse else State(frozenset(), frozenset())


def expected_seconds(
    roles: Mapping[ir.Node, Role], classes: Classes, costs: Costs, state: State
) -> float:
    """What all layers with a weight, and the layout changes between them, take together."""
    search = _Search(roles, classes, costs)
    layers = [role for role in roles.values() if role.is_sparse]
    return search.seconds(state, layers, frozenset(classes.members))


def sparse_seconds(role: Role, costs: Costs, *, blocked: bool) -> float:
    """What the sparse kernel takes for one image, or for one vector of features."""
    assert role.work is not None
    return seconds(costs, sparse_features(role.work, blocked=blocked))


def dense_seconds(role: Role, costs: Costs) -> float:
    """What ONNX Runtime's own kernel takes for the same."""
    assert role.work is not None
    return seconds(costs, dense_features(role.work))


class _Search:
    """Goes from one choice to a neighbouring one as long as that is cheaper."""

    def __init__(self, roles: Mapping[ir.Node, Role], classes: Classes, costs: Costs) -> None:
        self._roles, self._classes, self._costs = roles, classes, costs
        self._layers = [role for role in roles.values() if role.is_sparse]
        self._beside = {number: self._neighbours(number) for number in classes.members}

    def downhill(self, state: State) -> State:
        """Take the best neighbouring choice again and again, until there is no better one."""
        for _ in range(_ROUNDS):
            before = state
            for number in self._classes.members:
                state = self._best(state, frozenset(), frozenset({number}))
            for role in self._layers:
                state = self._best(state, frozenset({role.node}), self._around(role))
            if state == before:
                break
        return state

    def _best(self, state: State, nodes: frozenset[ir.Node], numbers: frozenset[int]) -> State:
        """The cheapest of all choices for some layers and classes, the others being as they are."""
        touched = frozenset().union(*(self._beside[number] for number in numbers))
        layers = [
            role for role in self._layers
            if role.node in nodes or numbers & self._around(role)
        ]  # fmt: skip
        options = [state]
        for node in nodes:
            options += [State(one.sparse ^ {node}, one.blocked) for one in options]
        for number in numbers:
            options += [State(one.sparse, one.blocked ^ {number}) for one in options]
        # The first of equals: what there is, else what differs less.
        return min(options, key=lambda one: self.seconds(one, layers, touched))

    def seconds(self, state: State, layers: list[Role], numbers: frozenset[int]) -> float:
        """What some layers take, and the layout changes in some classes."""
        of = self._classes.of
        found = changes(self._roles, state, self._classes, numbers)
        total = sum(self._costs.call + self._costs.move * change.nbytes for change in found)
        for role in layers:
            blocked = all(state.is_blocked(value, of) for value in role.images)
            total += (
                sparse_seconds(role, self._costs, blocked=blocked)
                if role.node in state.sparse
                else dense_seconds(role, self._costs)
            )
        return total

    def _around(self, role: Role) -> frozenset[int]:
        """Classes of a layer's images."""
        values = [*role.images, role.output]
        return frozenset(self._classes.of[value] for value in values if value is not None)

    def _neighbours(self, number: int) -> frozenset[int]:
        """A class and those that its followers join to it: they may become ours, or cease to be."""
        joined = (
            self._around(role) for role in self._roles.values() if role.op and not role.is_sparse
        )
        return frozenset({number}).union(*(around for around in joined if number in around))
