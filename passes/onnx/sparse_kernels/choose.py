"""Chooses sparse or dense for each layer, and a layout for each tensor, by the cost model.

What is minimised is the time of the graph: of each layer by its kernel, and of each change of
layout. Where both choices cost the same, as for pooling or activations, nothing is counted. The
search goes downhill, one layer with its tensors at a time: from all layers that win by themselves,
with all tensors around them in the blocked layout, until no such change helps.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.layouts import Classes, State, changes
from st3fx.passes.onnx.sparse_kernels.role import Role
from st3fx.runtime.costs import Costs, dense_features, seconds, sparse_features

_ROUNDS = 20


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
        return min(options, key=lambda one: self._seconds(one, layers, touched))

    def _seconds(self, state: State, layers: list[Role], numbers: frozenset[int]) -> float:
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
