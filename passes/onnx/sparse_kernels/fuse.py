"""Finds what one of our operators does besides: the residual sum and the activation after it.

An activation is a pattern of ONNX nodes that is all that reads a value. A sum goes to the last of
the convolutions before it, so that nodes become units of which no two share any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from st3fx.passes.onnx.sparse_kernels.role import Role
from st3fx.passes.onnx.values import constant, image, is_op, only_user
from st3fx.runtime import operators


@dataclass(frozen=True)
class Activation:
    """An activation after a value.

    Attributes:
        name: As in ``ops.md``.
        nodes: Which compute it, in order; the last one gives the output.
        limits: ``minimum`` and ``maximum`` of ``clip``.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def output(self) -> ir.Value:
        """What it gives."""
        return self.nodes[-1].outputs[0]


def activation_after(value: ir.Value) -> Activation | None:
    """The activation that is all that reads a value; ``None`` where there is none of ours."""
    for match in ACTIVATIONS:
        if found := match(value):
            return found
    return None


def _relu(value: ir.Value) -> Activation | None:
    """``max(x, 0)``."""
    node = only_user(value)
    return Activation("relu", (node,)) if node is not None and is_op(node, "Relu") else None


def _clip(value: ir.Value) -> Activation | None:
    """``min(max(x, minimum), maximum)`` with both limits constant: ReLU6 among others."""
    node = only_user(value)
    if node is None or not is_op(node, "Clip") or len(node.inputs) < 3:
        return None
    low, high = constant(node.inputs[1]), constant(node.inputs[2])
    if node.inputs[0] is not value or low is None or high is None:
        return None
    return Activation("clip", (node,), {"minimum": float(low), "maximum": float(high)})


def _hard_swish(value: ir.Value) -> Activation | None:
    """``x · max(0, min(1, x/6 + 1/2))``, as one node or with HardSigmoid."""
    node = only_user(value)
    if node is not None and is_op(node, "HardSwish"):
        return Activation("hard_swish", (node,))
    pair = _gated(value, "HardSigmoid")
    if pair is None:
        return None
    about = pair[0].attributes
    slope, offset = about.get_float("alpha", 0.2), about.get_float("beta", 0.5)
    exact = abs(slope - 1 / 6) < 1e-6 and offset == 0.5
    return Activation("hard_swish", pair) if exact else None


def _silu(value: ir.Value) -> Activation | None:
    """``x / (1 + exp(−x))``."""
    node = only_user(value)
    if node is not None and is_op(node, "Swish") and node.attributes.get_float("alpha", 1.0) == 1:
        return Activation("silu", (node,))
    pair = _gated(value, "Sigmoid")
    return Activation("silu", pair) if pair else None


def _gated(value: ir.Value, gate: str) -> tuple[ir.Node, ir.Node] | None:
    """``x · gate(x)``, where nothing else reads ``x`` or the gate."""
    readers = {use.node for use in value.uses()}
    gates = [node for node in readers if is_op(node, gate)]
    if len(readers) != 2 or len(gates) != 1 or value.is_graph_output():
        return None
    product = only_user(gates[0].outputs[0])
    if product is None or not is_op(product, "Mul") or product not in readers:
        return None
    return gates[0], product


ACTIVATIONS: tuple[Callable[[ir.Value], Activation | None], ...] = (
    _relu, _clip, _hard_swish, _silu,
)  # fmt: skip
"""Tried in order."""


_SUMS = (operators.SPARSE_CONV, operators.DEPTHWISE_CONV)
_ACTIVATED = (*_SUMS, operators.SPARSE_LINEAR, operators.ADD)


@dataclass(frozen=True)
class Unit:
    """One operator of ours in the place of some nodes.

    Attributes:
        role: What it is.
        nodes: That it replaces, in order; the last one gives the output.
        residual: What is added before the activation.
        activation: The last step.
    """

    role: Role
    nodes: tuple[ir.Node, ...]
    residual: ir.Value | None = None
    activation: Activation | None = None

    @property
    def output(self) -> ir.Value:
        """What it gives."""
        return self.nodes[-1].outputs[0]


def units(roles: Mapping[ir.Node, Role], ours: Callable[[Role], bool]) -> list[Unit]:
    """The operators that replace nodes; no node is in two of them.

    A sum goes to the last of the convolutions that it follows: the other one's output may then be
    overwritten.

    Args:
        roles: Node -> what it can become, in the graph's order.
        ours: Whether it does.
    """
    found, taken = [], set[ir.Node]()
    for role in reversed([role for role in roles.values() if ours(role) and role.op in _SUMS]):
        unit = _with_residual(role, roles)
        if unit is not None and not taken & set(unit.nodes):
            found.append(unit)
            taken |= set(unit.nodes)
    for role in roles.values():
        if ours(role) and role.op and role.node not in taken:
            unit = _activated(role, (role.node, *role.extra), None)
            found.append(unit)
            taken |= set(unit.nodes)
    return found


def _with_residual(role: Role, roles: Mapping[ir.Node, Role]) -> Unit | None:
    """A convolution with the sum after it: tensors of a sum have one layout, whichever it is."""
    add = only_user(role.result)
    summed = roles.get(add) if add is not None else None
    if add is None or summed is None or summed.op != operators.ADD:
        return None
    residual = next(value for value in summed.images if value is not role.result)
    return _activated(role, (role.node, *role.extra, add), residual)


def _activated(role: Role, nodes: tuple[ir.Node, ...], residual: ir.Value | None) -> Unit:
    result = nodes[-1].outputs[0]
    # What may be a tensor of images, but comes from a product, stays in sight of the layouts.
    hidden = role.output is None and image(result) is not None
    fits = role.op in _ACTIVATED and not hidden
    activation = activation_after(result) if fits else None
    if activation is None:
        return Unit(role, nodes, residual)
    return Unit(role, (*nodes, *activation.nodes), residual, activation)
