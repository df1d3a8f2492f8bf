"""Chooses which quantized tensors our operators give, by the cost model.

What is minimised is the time of what a graph's outputs need: of our operators, of ONNX Runtime's
own, and of each tensor that is needed in both layouts. The search begins with all that can be ours,
takes away what is connected and does not win as a whole, and then tries one operator at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels.qdq import enters
from st3fx.passes.onnx.quant_kernels.quant_role import QuantRole, picture
from st3fx.runtime.costs import QuantCosts, dense_quant_seconds, quant_seconds

_ROUNDS = 4


@dataclass
class Needs:
    """What the outputs of a graph need, for a choice.

    Attributes:
        ours: Roles that are computed.
        dense: Roles that could be ours and are computed by ONNX Runtime.
        to_blocked: Quantized tensors that ours read and ONNX Runtime gives.
        to_plain: The reverse.
    """

    ours: set[QuantRole] = field(default_factory=set)
    dense: set[QuantRole] = field(default_factory=set)
    to_blocked: set[ir.Value] = field(default_factory=set)
    to_plain: set[ir.Value] = field(default_factory=set)


def needs(graph: ir.Graph, roles: Mapping[ir.Value, QuantRole], chosen: set[QuantRole]) -> Needs:
    """Follow a graph from its outputs back.

    Args:
        graph: As it is before anything is replaced.
        roles: Value -> what can give it.
        chosen: Which of them do.
    """
    found = Needs()
    todo: list[tuple[ir.Value, bool]] = [(value, False) for value in graph.outputs]
    seen = set(todo)

    def need(value: ir.Value | None, *, blocked: bool = False) -> None:
        if value is not None and (value, blocked) not in seen:
            seen.add((value, blocked))
            todo.append((value, blocked))

    while todo:
        value, blocked = todo.pop()
        role = roles.get(value)
        if role is not None and role in chosen:
            found.ours.add(role)
            for image in role.images:
                need(image, blocked=True)
            need(role.value)
            if role.after is not None and not blocked:
                found.to_plain.add(value)
            continue
        if role is not None:
            found.dense.add(role)
        if blocked:
            found.to_blocked.add(value)
        node = value.producer()
        for each in _inputs(node):
            need(each)
    return found


def _inputs(node: ir.Node | None) -> list[ir.Value]:
    """What a node reads, bodies of branches and loops included."""
    if node is None:
        return []
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        inner = []
        if attribute.type == ir.AttributeType.GRAPH:
            inner = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            inner = list(attribute.as_graphs())
        for body in inner:
            for each in ir.traversal.RecursiveGraphIterator(body):
                values += [value for value in each.inputs if value is not None]
            values += list(body.outputs)
    return values


def choose(
    graph: ir.Graph, roles: Mapping[ir.Value, QuantRole], costs: QuantCosts
) -> set[QuantRole]:
    """The cheapest choice that the search finds; nothing where no layer gains."""
    search = _Search(graph, roles, costs)
    chosen = set(roles.values())
    best = search.seconds(chosen)
    for part in _connected(roles):
        trial = chosen - part
        if (cost := search.seconds(trial)) <= best:
            chosen, best = trial, cost
    # Far from the conversions each is judged by its own time alone: those first that lose most.
    everyone = sorted(roles.values(), key=search.gain)
    for _ in range(_ROUNDS):
        before = best
        for role in everyone:
            trial = chosen ^ {role}
            if (cost := search.seconds(trial)) < best:
                chosen, best = trial, cost
        if best == before:
            break
    live = needs(graph, roles, chosen).ours
    return chosen if any(role.weight is not None for role in live) else set()


def _connected(roles: Mapping[ir.Value, QuantRole]) -> list[set[QuantRole]]:
    """Roles that read each other's tensors, together."""
    beside: dict[QuantRole, set[QuantRole]] = {role: set() for role in roles.values()}
    for role in roles.values():
        for other in (roles[image] for image in role.images if image in roles):
            beside[role].add(other)
            beside[other].add(role)
    parts: list[set[QuantRole]] = []
    left = dict.fromkeys(beside)
    while left:
        part, todo = set(), [next(iter(left))]
        while todo:
            role = todo.pop()
            if role in left:
                del left[role]
                part.add(role)
                todo += beside[role]
        parts.append(part)
    return parts


class _Search:
    def __init__(
        self, graph: ir.Graph, roles: Mapping[ir.Value, QuantRole], costs: QuantCosts
    ) -> None:
        self._graph, self._roles, self._costs = graph, roles, costs

    def gain(self, role: QuantRole) -> float:
        """What an operator of ours saves by itself."""
        dense = dense_quant_seconds(self._costs, role.work)
        return dense - quant_seconds(self._costs, role.work)

    def seconds(self, chosen: set[QuantRole]) -> float:
        """The time of a choice for one image."""
        found = needs(self._graph, self._roles, chosen)
        total = sum(quant_seconds(self._costs, role.work) for role in found.ours)
        total += sum(dense_quant_seconds(self._costs, role.work) for role in found.dense)
        # A new tensor is written, and the one of bytes is read again.
        moved = [2 * _bytes(value) for value in found.to_blocked if not enters(value)]
        moved += [2 * _bytes(value) for value in found.to_plain]
        return total + sum(self._costs.call + self._costs.move * size for size in moved)


def _bytes(value: ir.Value) -> int:
    seen = picture(value)
    return seen.channels * seen.positions if seen is not None else 0
