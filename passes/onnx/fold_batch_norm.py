"""Folds batch norm into the convolution or matrix product before it.

With ``s = γ / √(σ² + ε)`` per output channel, ``BN(W x + b) = (s W) x + (s (b − μ) + β)``. A zero
of ``W`` stays a zero. It is done only where the zeros of ``W`` stay the only ones: a channel with
``γ = 0`` would lose all of its weights, and a tiny ``s`` would make some of them denormal.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.values import Array, constant, free_name, new_initializer

_KINDS = ("Conv", "ConvTranspose", "Gemm")


class FoldBatchNorm(GraphPass):
    """Folds every batch norm that can be, in branches too.

    One that follows a convolution but has to stay reads its scale from a Constant node, so that no
    later pass folds it after all.

    Attributes:
        changed: Names of the batch norms that are gone.
        kept: Name of a batch norm -> why it stays.
        absorbed: Initializers that are gone with them.
        biases: Initializers that have other values than in the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.absorbed: set[str] = set()
        self.biases: set[str] = set()

    def apply(self, model: ir.Model) -> bool:
        """Fold what can be."""
        pinned = False
        for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
            if node.op_type == "BatchNormalization" and node.domain == "":
                name = _name(node)
                reason = _fold(model.graph, node, self)
                if reason:
                    self.kept[name] = reason
                    pinned = _pin(model.graph, node) or pinned
                else:
                    self.changed.append(name)
        return pinned or bool(self.changed)


def _fold(graph: ir.Graph, norm: ir.Node, done: FoldBatchNorm) -> str:
    """Fold one batch norm; the reason where it cannot be, with nothing changed."""
    inner = norm.inputs[0]
    node = inner.producer() if inner is not None else None
    known = node is not None and node.op_type in _KINDS and node.domain == ""
    # One before a branch is computed whichever branch is taken.
    if inner is None or node is None or not known or node.graph is not norm.graph:
        return "no convolution or matrix product before it"
    if len(inner.uses()) > 1 or inner.is_graph_output():
        return f"the output of {node.op_type} is used elsewhere too"
    weight = node.inputs[1]
    if weight is None or weight.name not in graph.initializers or weight.is_graph_input():
        return f"the weight of {node.op_type} is computed"
    if len(weight.uses()) > 1:
        return f"{weight.name} is used elsewhere too"
    parts = [constant(value) for value in (weight, *norm.inputs[1:])]
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    if bias is None or any(part is None for part in parts):
        return "its parameters, or the bias before it, are computed"
    dense, gamma, beta, mean, variance = (np.asarray(part) for part in parts)
    scale = gamma.astype(np.float64) / np.sqrt(
        variance.astype(np.float64) + norm.attributes.get_float("epsilon", 1e-5)
    )
    scaled = _scaled(node, dense, scale)
    shift = _shift(node, bias, scale, mean, beta)
    if scaled is None or shift is None:
        return f"the shapes of {node.op_type} and batch norm do not fit"
    if not _same_zeros(dense, scaled):
        return f"{weight.name} would have other zeros"
    _replace(graph, norm, node, scaled, shift, done)
    return ""


def _scaled(node: ir.Node, weight: Array, scale: Array) -> Array | None:
    """``s W`` in the weight's own type; ``None`` if the shapes do not fit."""
    if node.op_type == "ConvTranspose":
        # (in, out / groups, *kernel): the input channels of a group meet its output channels.
        groups = node.attributes.get_int("group", 1)
        if weight.shape[0] % groups or scale.size != weight.shape[1] * groups:
            return None
        split = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        factor = scale.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        product = (split.astype(np.float64) * factor).reshape(weight.shape)
    else:
        axis = 1 if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0) else 0
        if scale.size != weight.shape[axis]:
            return None
        shape = [1] * weight.ndim
        shape[axis] = -1
        product = weight.astype(np.float64) * scale.reshape(shape)
    with np.errstate(over="ignore"):
        # The addition turns the -0.0 of a negative scale into +0.0.
        return (product + 0.0).astype(weight.dtype)


def _shift(node: ir.Node, bias: Array, scale: Array, mean: Array, beta: Array) -> Array | None:
    """``s (b − μ) + β`` per output channel; ``None`` for a bias that differs between samples."""
    if bias.size not in (1, scale.size):
        return None
    factor = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    whole = np.broadcast_to(bias.astype(np.float64).reshape(-1), scale.shape) * factor
    shift: Array = ((whole - mean) * scale + beta).astype(beta.dtype)
    return shift


def _same_zeros(before: Array, after: Array) -> bool:
    """Whether the same entries are zero, and all others finite and normal."""
    size = np.abs(after.astype(np.float64))
    normal = np.isfinite(size) & (size >= _tiny(after))
    return bool(np.array_equal(normal, before != 0))


def _tiny(array: Array) -> float:
    # bfloat16, which NumPy does not know, has the exponents of float32.
    return float(np.finfo(array.dtype if array.dtype.kind == "f" else np.float32).tiny)


def _replace(
    graph: ir.Graph, norm: ir.Node, node: ir.Node, weight: Array, bias: Array, done: FoldBatchNorm
) -> None:
    old_weight, inner, outer = node.inputs[1], norm.inputs[0], norm.outputs[0]
    assert old_weight is not None
    assert old_weight.name is not None
    assert inner is not None
    old_weight.const_value = ir.tensor(weight, name=old_weight.name)
    old_bias = node.inputs[2] if len(node.inputs) > 2 else None
    parameters = [value for value in norm.inputs[1:] if value is not None]
    node.resize_inputs(3)
    node.replace_input_with(2, None)
    _forget(graph, [old_bias] if old_bias is not None else [], done)
    name = free_name(graph, f"{old_weight.name.removesuffix('.weight')}.bias")
    value = new_initializer(graph, name, bias)
    done.biases.add(name)
    node.replace_input_with(2, value)
    if node.op_type == "Gemm":
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
    assert norm.graph is not None
    for index, output in enumerate(norm.graph.outputs):
        if output is outer:
            norm.graph.outputs[index] = inner
    ir.convenience.replace_all_uses_with(outer, inner)
    inner.shape, inner.type = outer.shape or inner.shape, outer.type or inner.type
    norm.graph.remove(norm, safe=True)
    # A value is known by its name: it is that of the batch norm now.
    inner.name, outer.name = outer.name, inner.name
    _forget(graph, parameters, done)


def _pin(graph: ir.Graph, norm: ir.Node) -> bool:
    """Read the scale from a Constant node: passes that fold batch norms look for initializers.

    Returns:
        Whether it was an initializer.
    """
    scale = norm.inputs[1]
    if scale is None or not scale.is_initializer() or scale.const_value is None:
        return False
    name = scale.name
    node = ir.node("Constant", [], {"value": scale.const_value})
    # Not a name that a graph gives: of a branch, that could be the name of a value outside.
    node.outputs[0].name = f"{name}_of_{norm.outputs[0].name}"
    assert norm.graph is not None
    norm.graph.insert_before(norm, node)
    norm.replace_input_with(1, node.outputs[0])
    if not scale.uses() and name is not None and name in graph.initializers:
        graph.initializers.pop(name)
        node.outputs[0].name = name
    return True


def _forget(graph: ir.Graph, values: list[ir.Value], done: FoldBatchNorm) -> None:
    for value in values:
        if not value.uses() and value.name is not None and value.name in graph.initializers:
            graph.initializers.pop(value.name)
            done.absorbed.add(value.name)


def _name(norm: ir.Node) -> str:
    """The module's name, from that of its scale."""
    scale = norm.inputs[1]
    return (scale.name if scale is not None and scale.name else str(norm.name)).removesuffix(
        ".weight"
    )
