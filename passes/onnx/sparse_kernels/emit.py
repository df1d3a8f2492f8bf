"""Writes the choice into the graph: our operators, their constants, changes of layout, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.choose import Change, Classes, State
from st3fx.passes.onnx.sparse_kernels.fuse import Unit
from st3fx.passes.onnx.sparse_kernels.role import Attributes, Role, Weight
from st3fx.passes.onnx.values import Array, image, initializer
from st3fx.runtime import operators
from st3fx.runtime.inference import DOMAIN
from st3fx.runtime.layout import compress, storage_channels

LAYOUTS = {False: "nchw", True: "blocked"}


class Emitter:
    """Puts operators into a graph, in place."""

    def __init__(self, graph: ir.Graph, state: State, classes: Classes) -> None:
        self._graph, self._state, self._classes = graph, state, classes
        self._now: dict[ir.Value, ir.Value] = {}  # output that was replaced -> ours
        self._images: dict[ir.Node, set[int]] = {}  # node of ours -> inputs whose layout is free

    def emit(
        self, units: Sequence[Unit], changes: Sequence[Change], roles: Mapping[ir.Node, Role]
    ) -> None:
        """Replace the units' nodes, then change layouts where they differ."""
        blocked = [
            value for number in self._state.blocked for value in self._classes.members[number]
        ]
        shapes = {value: _storage(value) for value in blocked}
        about = {change: image(change.value) for change in changes}
        plain = {change: change.value.shape for change in changes}
        for unit in units:
            self._replace(unit)
        for value, shape in shapes.items():
            self._now.get(value, value).shape = shape
        for change, picture in about.items():
            assert picture is not None
            self._change(change, picture.channels, plain[change], roles)

    def _is_blocked(self, value: ir.Value | None) -> bool:
        return self._state.is_blocked(value, self._classes.of)

    def _replace(self, unit: Unit) -> None:
        role, last = unit.role, unit.nodes[-1]
        data = [*role.images, *role.others]
        inputs: list[ir.Value | None] = [self._now.get(value, value) for value in data]
        if role.weight is not None:
            inputs += self._sparse(role.weight)
        inputs += [self._constant(name, array) for name, array in role.constants.items()]
        free = set(range(len(role.images)))
        if unit.residual is not None:
            free.add(len(inputs))
            inputs.append(self._now.get(unit.residual, unit.residual))
        while inputs[-1] is None:
            inputs.pop()
        node = ir.node(role.op, inputs, self._attributes(unit), domain=DOMAIN)
        node.name = role.node.name
        self._graph.insert_before(last, node)
        self._images[node] = free
        made, old = node.outputs[0], unit.output
        name, made.shape, made.type = old.name, old.shape, old.type
        if role.flatten:
            made.shape = ir.Shape([*(made.shape or ()), 1, 1])
            made = self._flattened(node, old)
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        self._now[old] = made
        self._graph.remove(reversed(unit.nodes), safe=True)
        made.name = name

    def _flattened(self, node: ir.Node, old: ir.Value) -> ir.Value:
        """What ONNX's node gave, from ours, which keeps dimensions of size 1."""
        flatten = ir.node("Flatten", [node.outputs[0]], {"axis": 1})
        node.outputs[0].name = f"{old.name}_kept"
        self._graph.insert_after(node, flatten)
        flatten.outputs[0].shape, flatten.outputs[0].type = old.shape, old.type
        return flatten.outputs[0]

    def _attributes(self, unit: Unit) -> dict[str, Any]:
        role, found = unit.role, dict(unit.role.attributes)
        if role.op in (operators.CONCAT, operators.CHANNEL_SCALE):
            found["layout"] = LAYOUTS[self._is_blocked(role.output)]
        elif role.op not in (operators.ADD, operators.SPARSE_LINEAR):
            source = role.images[0] if role.images else None
            found["input_layout"] = LAYOUTS[self._is_blocked(source)]
            if role.op != operators.GLOBAL_AVERAGE_POOL:
                found["output_layout"] = LAYOUTS[self._is_blocked(role.output)]
        if unit.activation is not None:
            found |= {"activation": unit.activation.name, **unit.activation.limits}
        return found

    def _sparse(self, weight: Weight) -> list[ir.Value | None]:
        packed = compress(weight.rows)
        parts = ("values", "columns", "row_starts")
        return [self._constant(f"{weight.name}.{part}", getattr(packed, part)) for part in parts]

    def _constant(self, name: str, array: Array | None) -> ir.Value | None:
        """An initializer; the one that is there where it holds the same."""
        return None if array is None else initializer(self._graph, name, array)

    def _change(
        self, change: Change, channels: int, plain: ir.Shape | None, roles: Mapping[ir.Node, Role]
    ) -> None:
        """Give a value's readers in the other layout a copy in that."""
        value = self._now.get(change.value, change.value)
        other = not change.to_blocked
        attributes: Attributes = {
            "channels": channels,
            "input_layout": LAYOUTS[other],
            "output_layout": LAYOUTS[change.to_blocked],
        }
        wants = change.to_blocked
        readers = [use for use in value.uses()
                   if self._reads_blocked(use.node, use.idx, roles) == wants]  # fmt: skip
        node = ir.node(operators.LAYOUT, [value], attributes, domain=DOMAIN)
        copy, maker = node.outputs[0], value.producer()
        if maker is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(maker, node)
        storage = value.shape
        if change.to_blocked:
            storage, value.shape = value.shape, plain
        copy.shape, copy.type = storage if change.to_blocked else plain, value.type
        for use in readers:
            use.node.replace_input_with(use.idx, copy)
        copy.name = f"{value.name}_{LAYOUTS[change.to_blocked]}"
        for index, output in enumerate(self._graph.outputs):
            if output is value and not change.to_blocked:
                self._graph.outputs[index] = copy
                copy.name, value.name = value.name, f"{value.name}_blocked"

    def _reads_blocked(self, node: ir.Node, index: int, roles: Mapping[ir.Node, Role]) -> bool:
        if node in self._images:
            return index in self._images[node]
        role = roles.get(node)
        return role is not None and not role.op


def _storage(value: ir.Value) -> ir.Shape | None:
    """The shape that a blocked tensor is declared with."""
    picture, shape = image(value), value.shape
    if picture is None or shape is None:
        return None
    height, width = picture.height, picture.width
    channels = storage_channels(picture.channels, height, width)
    return ir.Shape([shape[0], channels, height, width])
