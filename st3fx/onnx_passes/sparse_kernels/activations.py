"""The activations that our operators bring along, as patterns of ONNX nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from st3fx.onnx_passes.sparse_kernels.values import constant, is_op, only_user


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
