"""Writes the choice into the graph: our operators, their constants, conversions, shapes.

What the old nodes gave stays where something else reads it, and goes with the unused nodes where
nothing does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels.layers import REARRANGED
from st3fx.passes.onnx.quant_kernels.qdq import Numbers, enters, numbers
from st3fx.passes.onnx.quant_kernels.quant_role import Picture, QuantRole, Step, picture
from st3fx.passes.onnx.sparse_kernels.role import Attributes
from st3fx.passes.onnx.values import initializer, is_op, only_user
from st3fx.runtime import operators
from st3fx.runtime.inference import DOMAIN
from st3fx.runtime.layout import BLOCK, blocks, storage_channels

_WINDOWS = (operators.QUANT_CONV, operators.QUANT_DEPTHWISE_CONV)


@dataclass(frozen=True)
class _Sum:
    """A convolution, and the sum that it does besides."""

    conv: QuantRole
    residual: ir.Value


class QuantEmitter:
    """Puts operators into a graph, in place."""

    def __init__(self, graph: ir.Graph, chosen: Mapping[ir.Value, QuantRole]) -> None:
        """Take a graph, and value -> the role that gives it, in the graph's order."""
        self._graph, self._chosen = graph, chosen
        self._blocked: dict[ir.Value, ir.Value] = {}
        self._plain: dict[ir.Value, ir.Value] = {}

    def emit(self) -> None:
        """Insert our operators before what they replace, and give readers their outputs."""
        sums = self._sums()
        inside = {item.conv for item in sums.values()}
        for value, role in self._chosen.items():
            if role.after is None:
                self._product(role)
            elif role not in inside:
                made = self._blocked[value] = self._made(role, sums.get(role))
                made.name = f"{value.name}_blocked"
        for value, role in self._chosen.items():
            if role.after is not None and role not in inside:
                self._give(value, role)

    def name(self, live: Collection[str]) -> None:
        """Give blocked tensors the names of those that are gone."""
        for value, made in self._blocked.items():
            if str(value.name) not in live:
                made.name = value.name

    def _sums(self) -> dict[QuantRole, _Sum]:
        """Sum -> the last of the convolutions before it, whose output nothing else reads."""
        found: dict[QuantRole, _Sum] = {}
        places = {role: place for place, role in enumerate(self._chosen.values())}
        for role in self._chosen.values():
            if role.steps[-1].op != operators.QUANT_ADD:
                continue
            first, second = role.images
            pairs = [(first, second), (second, first)] if first is not second else []
            hosts = [
                _Sum(self._chosen[image], other) for image, other in pairs
                if image in self._chosen and _is_sole(image, role)
                and self._chosen[image].steps[-1].op in _WINDOWS
            ]  # fmt: skip
            if hosts:
                found[role] = max(hosts, key=lambda item: places[item.conv])
        return found

    def _made(self, role: QuantRole, total: _Sum | None) -> ir.Value:
        """The blocked tensor of a role."""
        if total is not None:
            (step,) = total.conv.steps
            step = replace(step, attributes={**step.attributes, **_sum(role, total)})
            return self._step(role, step, [], total.residual)
        made: list[ir.Value] = []
        for step in role.steps:
            made.append(self._step(role, step, made))
        return made[-1]

    def _step(
        self,
        role: QuantRole,
        step: Step,
        before: list[ir.Value],
        residual: ir.Value | None = None,
    ) -> ir.Value:
        inputs: list[ir.Value | None] = [
            before[given] if isinstance(given, int) else self._in_blocks(given)
            for given in step.inputs
        ]
        inputs += self._constants(step)
        if residual is not None:
            inputs.append(self._in_blocks(residual))
        node = self._node(step.op, inputs, step.attributes, before_node=role.node)
        value = node.outputs[0]
        value.name = f"{role.result.name}_step{len(before)}"
        value.dtype = ir.DataType.UINT8
        taken = _small(role) if role.flatten else picture(role.result)
        value.shape = _storage(role.result.shape, step.channels, taken)
        return value

    def _constants(self, step: Step) -> list[ir.Value | None]:
        held: list[ir.Value | None] = [
            initializer(self._graph, name, array) for name, array in step.constants.items()
        ]
        if step.op == operators.QUANT_LINEAR and len(held) == 4:
            held.insert(3, None)
        return held

    def _node(
        self,
        op: str,
        inputs: list[ir.Value | None],
        attributes: Attributes,
        *,
        before_node: ir.Node | None = None,
        after: ir.Value | None = None,
    ) -> ir.Node:
        node = ir.node(op, inputs, dict(attributes), domain=DOMAIN)
        maker = after.producer() if after is not None else None
        if before_node is not None:
            self._graph.insert_before(before_node, node)
        elif maker is not None:
            self._graph.insert_after(maker, node)
        else:
            self._graph.insert_before(self._graph[0], node)
        return node

    def _in_blocks(self, value: ir.Value) -> ir.Value:
        """A quantized tensor in blocks: ours, or one that ONNX Runtime's operators give."""
        if value in self._blocked:
            return self._blocked[value]
        seen, maker = picture(value), value.producer()
        assert seen is not None
        about = numbers(maker) if is_op(maker, "QuantizeLinear") else None
        source = maker.inputs[0] if about is not None and maker is not None else None
        if enters(value) and about is not None and source is not None:
            attributes: Attributes = {
                "channels": seen.channels, "scale": about.scale, "zero_point": about.zero
            }  # fmt: skip
            node = self._node(operators.QUANTIZE_IMAGE, [source], attributes, after=value)
        else:
            attributes = {"channels": seen.channels, "output_layout": "blocked"}
            node = self._node(operators.QUANT_LAYOUT, [value], attributes, after=value)
        made = node.outputs[0]
        made.name, made.dtype = f"{value.name}_blocked", ir.DataType.UINT8
        made.shape = _storage(value.shape, seen.channels, seen)
        self._blocked[value] = made
        return made

    def _product(self, role: QuantRole) -> None:
        """A layer with float input and output."""
        (step,) = role.steps
        value, old = role.value, role.result
        assert value is not None
        last = old.producer()
        assert last is not None
        given = self._unquantized(value)
        node = self._node(step.op, [given, *self._constants(step)], step.attributes,
                          before_node=last)  # fmt: skip
        made = node.outputs[0]
        made.shape, made.type, name = old.shape, old.type, old.name
        if _is_skip(old):
            made.shape = None
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        old.name = f"{name}_was"
        made.name = name

    def _unquantized(self, value: ir.Value) -> ir.Value:
        """What was quantized to what a product reads: it quantizes itself.

        Nodes that move what is quantized, for the product alone, move it as it was before.
        """
        back = value.producer()
        if back is not None and is_op(back, *REARRANGED) and only_user(value) is not None:
            source = back.inputs[0]
            if source is not None and only_user(source) is back:
                back.replace_input_with(0, self._unquantized(source))
            return value
        bytes_ = back.inputs[0] if back is not None and is_op(back, "DequantizeLinear") else None
        if bytes_ is None or bytes_ in self._chosen:
            return value
        maker = bytes_.producer()
        about = numbers(maker) if is_op(maker, "QuantizeLinear") else None
        source = maker.inputs[0] if about is not None and maker is not None else None
        if source is None or about != numbers(back) or source.dtype != ir.DataType.FLOAT:
            return value
        return source

    def _give(self, value: ir.Value, role: QuantRole) -> None:
        """Give readers of a tensor that is ours now what they read."""
        for use in value.uses():
            node = use.node
            about = numbers(node) if is_op(node, "DequantizeLinear") else None
            if about is None:
                node.replace_input_with(use.idx, self._as_plain(value, role))
                continue
            for inner in node.outputs[0].uses():
                if not _runs_on_bytes(inner.node):
                    made = self._as_floats(node, role, about)
                    inner.node.replace_input_with(inner.idx, made)
            if node.outputs[0].is_graph_output():
                made, old = self._as_floats(node, role, about), node.outputs[0]
                ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
                made.name, old.name = old.name, f"{old.name}_was"
            elif node.outputs[0].uses():
                node.replace_input_with(use.idx, self._as_plain(value, role))
        if value.is_graph_output():
            made = self._as_plain(value, role)
            ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)
            made.name, value.name = value.name, f"{value.name}_was"

    def _as_floats(self, node: ir.Node, role: QuantRole, about: Numbers) -> ir.Value:
        """What a ``DequantizeLinear`` gave."""
        old = node.outputs[0]
        if old not in self._plain:
            attributes: Attributes = {
                "channels": role.steps[-1].channels, "scale": about.scale, "zero_point": about.zero
            }  # fmt: skip
            self._plain[old] = self._back(operators.DEQUANTIZE_IMAGE, role, attributes, old)
        return self._plain[old]

    def _as_plain(self, value: ir.Value, role: QuantRole) -> ir.Value:
        """Bytes as ONNX has them."""
        if value not in self._plain:
            attributes: Attributes = {
                "channels": role.steps[-1].channels, "input_layout": "blocked"
            }  # fmt: skip
            self._plain[value] = self._back(operators.QUANT_LAYOUT, role, attributes, value)
        return self._plain[value]

    def _back(self, op: str, role: QuantRole, attributes: Attributes, old: ir.Value) -> ir.Value:
        blocked = self._blocked[role.result]
        node = self._node(op, [blocked], attributes, after=blocked)
        made = node.outputs[0]
        made.name, made.type, made.shape = f"{old.name}_plain", old.type, old.shape
        if role.flatten:
            made.shape = ir.Shape([*list(old.shape or ()), 1, 1])
            flatten = ir.node("Flatten", [made], {"axis": 1})
            self._graph.insert_after(node, flatten)
            made = flatten.outputs[0]
            made.name, made.type, made.shape = f"{old.name}_flat", old.type, old.shape
        return made


def _is_sole(image: ir.Value, role: QuantRole) -> bool:
    """Whether a sum is all that reads a quantized tensor."""
    back = only_user(image)
    added = only_user(back.outputs[0]) if back is not None else None
    behind = role.node.inputs[0]
    while behind is not None and (node := behind.producer()) is not None:
        if node is added:
            return is_op(node, "Add")
        behind = node.inputs[0] if is_op(node, "Relu", "Clip", "Identity") else None
    return False


def _sum(role: QuantRole, total: _Sum) -> Attributes:
    """The attributes of a sum in a convolution."""
    about = role.steps[-1].attributes
    names = ("a_factor", "b_factor")
    own, other = names if role.images[1] is total.residual else names[::-1]
    renamed = {
        own: "sum_factor", other: "residual_factor", "offset": "offset",
        "minimum": "sum_minimum", "maximum": "sum_maximum",
    }  # fmt: skip
    return {renamed[name]: value for name, value in about.items()}


def _is_skip(value: ir.Value) -> bool:
    """Whether a value is added to another one, and the sum goes into a layer norm.

    Where ONNX Runtime knows that both have one shape, it makes one node of sum and layer norm,
    which takes five times as long as the two (1.32, Sapphire Rapids, 128 vectors of 768).
    """
    sums = [use.node.outputs[0] for use in value.uses() if is_op(use.node, "Add")]
    return not value.is_graph_output() and any(
        is_op(use.node, "LayerNormalization") for each in sums for use in each.uses()
    )


def _runs_on_bytes(node: ir.Node) -> bool:
    """Whether ONNX Runtime runs an operator between conversions on bytes."""
    readers = [use.node for output in node.outputs for use in output.uses()]
    free = not any(output.is_graph_output() for output in node.outputs)
    return free and bool(readers) and node.domain != DOMAIN and all(
        is_op(reader, "QuantizeLinear") for reader in readers
    )  # fmt: skip


def _small(role: QuantRole) -> Picture:
    return Picture(role.steps[-1].channels, 1, 1)


def _storage(shape: ir.Shape | None, channels: int, seen: Picture | None) -> ir.Shape | None:
    """The shape that a blocked tensor is declared with; ``None`` where its size is free."""
    if seen is None or shape is None or seen.height is None or seen.width is None:
        return None
    storage = storage_channels(blocks(channels), seen.height, seen.width)
    return ir.Shape([next(iter(shape)), BLOCK * storage, seen.height, seen.width])
