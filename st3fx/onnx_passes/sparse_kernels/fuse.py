"""Finds what one of our operators does besides: the residual sum and the activation after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from st3fx.onnx_passes.sparse_kernels.activations import Activation, activation_after
from st3fx.onnx_passes.sparse_kernels.role import Role
from st3fx.onnx_passes.sparse_kernels.values import image, only_user
from st3fx.runtime import operators

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
