"""Brings what different quantizers write into one form: bytes between Q and DQ, weights int8.

1. ``com.microsoft`` has the same two operators for 8 bits as ONNX.
2. A weight that is stored as floats before a ``QuantizeLinear`` is quantized now (NNCF, SparseML).
3. ``QLinearConv`` and its kind, and static ``ConvInteger`` and ``MatMulInteger`` with the sum, cast
   and product behind them (SparseML), become float operators between Q and DQ (``packed_ops``).
4. int8 activations become uint8: 128 is added to bytes and zero points. Where something else reads
   the bytes, or nothing here makes them, they stay, and what reads their numbers gets uint8 behind.
5. Equal conversions of one tensor become one; Q behind DQ of the same scale and zero point goes.
6. What only picks from the numbers of quantized images (``MaxPool``, ``Relu``, a split) gives such
   numbers: where no Q follows, Q and DQ of the same scale do (NNCF leaves them out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.quant_kernels.packed_ops import MICROSOFT, unpack
from st3fx.passes.onnx.quant_kernels.qdq import (
    ChannelNumbers,
    Numbers,
    channel_numbers,
    numbers,
    quantized,
)
from st3fx.passes.onnx.quant_kernels.quant_role import picture
from st3fx.passes.onnx.values import Array, constant, initializer, is_op

_BOTH = ("QuantizeLinear", "DequantizeLinear")


class QdqForm(GraphPass):
    """Rewrites a graph in that form, in place."""

    def apply(self, model: ir.Model) -> bool:
        """Rewrite; ``changed`` has the names of what is another node now."""
        graph = model.graph
        for rewrite in (_one_domain, _quantize_weights, unpack, _unsigned, _pick, _join):
            self.changed += rewrite(graph)
        if self.changed:
            common.RemoveUnusedNodesPass()(model)
        return bool(self.changed)


def _one_domain(graph: ir.Graph) -> list[str]:
    found = []
    for node in graph:
        if node.domain != MICROSOFT or node.op_type not in _BOTH:
            continue
        zeros = [array for value in node.inputs[2:] if (array := constant(value)) is not None]
        if all(zero.dtype.itemsize == 1 for zero in zeros):
            node.domain = ""
            found.append(str(node.outputs[0].name))
    return found


def _quantize_weights(graph: ir.Graph) -> list[str]:
    """Compute ``QuantizeLinear`` of constants, as ONNX says it."""
    found = []
    for node in list(graph):
        array = _constant(node.inputs[0]) if is_op(node, "QuantizeLinear") else None
        scale = constant(node.inputs[1]) if array is not None else None
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else _no_zero_point(node)
        if array is None or scale is None or zero is None or array.dtype != np.float32:
            continue
        if zero.dtype not in (np.uint8, np.int8) or scale.ndim > 1 or (scale == 0).any():
            continue
        if node.attributes.get_int("block_size", 0) or node.outputs[0].is_graph_output():
            continue
        axis = node.attributes.get_int("axis", 1)
        shape = [1] * array.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        limits = np.iinfo(zero.dtype)
        shift = np.asarray(zero).reshape(shape if np.size(zero) > 1 else [1] * array.ndim)
        places = np.rint(array / scale.reshape(shape)) + shift.astype(np.float32)
        whole = np.clip(places, limits.min, limits.max).astype(zero.dtype)
        name = _name(node.inputs[0])
        _replace(node, initializer(graph, f"{name}.quantized", whole))
        found.append(name)
    return found


def _name(value: ir.Value | None) -> str:
    return str(value.name if value is not None else "")


def _no_zero_point(node: ir.Node) -> Array | None:
    """Zero in the type that a ``QuantizeLinear`` without a zero point gives (opset 21 names it)."""
    kind = ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8)
    return np.zeros((), kind.numpy()) if kind in (ir.DataType.UINT8, ir.DataType.INT8) else None


def _constant(value: ir.Value | None) -> Array | None:
    """A constant, through a transposition."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Transpose"):
        return constant(value)
    array, order = _constant(node.inputs[0]), node.attributes.get_ints("perm")
    return None if array is None else array.transpose(order)


def _replace(node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value)


def _unsigned(graph: ir.Graph) -> list[str]:
    """Make int8 activations uint8 where only ``DequantizeLinear`` reads them."""
    found = []
    for node in list(graph):
        about = _about(node)
        if about is None or not about.signed or not is_op(node, "QuantizeLinear"):
            continue
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        known = all(
            is_op(reader, "DequantizeLinear") and _about(reader) is not None for reader in readers
        )
        if value.is_graph_output() or not known or constant(node.inputs[0]) is not None:
            continue
        for each in (node, *readers):
            zero = _about(each)
            assert zero is not None
            shape = (len(zero.scale),) if isinstance(zero, ChannelNumbers) else ()
            whole = np.full(shape, zero.zero, np.uint8)
            held = initializer(graph, f"zero_point_{zero.zero}", whole)
            _set_zero(each, held)
        value.dtype = ir.DataType.UINT8
        found.append(str(value.name))
    return found + _beside_signed(graph)


def _beside_signed(graph: ir.Graph) -> list[str]:
    """Convert the numbers of int8 activations that stay to uint8 and back."""
    found = []
    for node in list(graph):
        about = numbers(node) if is_op(node, "DequantizeLinear") else None
        value, readers = node.outputs[0], list(node.outputs[0].uses())
        if about is None or not about.signed or constant(node.inputs[0]) is not None or not readers:
            continue
        zero = initializer(graph, f"zero_point_{about.zero}", np.array(about.zero, np.uint8))
        back = _converted(graph, node, value, (node.inputs[1], zero))
        for use in readers:
            use.node.replace_input_with(use.idx, back)
        found.append(str(value.name))
    return found


def _about(node: ir.Node) -> Numbers | ChannelNumbers | None:
    return numbers(node) or channel_numbers(node)


def _set_zero(node: ir.Node, zero: ir.Value) -> None:
    node.attributes.pop("output_dtype", None)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, zero)


PICKED = "st3fx.picked"
"""Key of the metadata of conversions of case 6, which go again where nothing needed them."""

_PICKS = ("Identity", "MaxPool", "Relu", "Slice", "Split")


def _pick(graph: ir.Graph) -> list[str]:
    found = []
    for node in list(graph):
        given = node.inputs[0] if is_op(node, *_PICKS) else None
        maker = given.producer() if quantized(given) is not None and given is not None else None
        if maker is None or picture(given) is None:
            continue
        for value in node.outputs:
            readers = [use for use in value.uses() if not is_op(use.node, "QuantizeLinear")]
            pairs = not value.name or not readers or value.is_graph_output()
            if pairs or (node.op_type == "MaxPool" and value is not node.outputs[0]):
                continue
            back = _converted(graph, node, value, maker.inputs[1:])
            for use in readers:
                use.node.replace_input_with(use.idx, back)
            found.append(str(value.name))
    return found


def _converted(
    graph: ir.Graph, node: ir.Node, value: ir.Value, about: Sequence[ir.Value | None]
) -> ir.Value:
    """A value through bytes and back."""
    whole = ir.node("QuantizeLinear", [value, *about])
    back = ir.node("DequantizeLinear", [whole.outputs[0], *about])
    graph.insert_after(node, [whole, back])
    for made, kind, name in ((whole, ir.DataType.UINT8, "picked"), (back, value.dtype, "back")):
        made.metadata_props[PICKED] = "1"
        made.outputs[0].name = f"{value.name}.{name}"
        made.outputs[0].shape = value.shape
        if kind is not None:
            made.outputs[0].dtype = kind
    return back.outputs[0]


def unpick(graph: ir.Graph) -> None:
    """Take the conversions away that were put in and are computed still."""
    for node in list(graph):
        if PICKED not in node.metadata_props or not is_op(node, "DequantizeLinear"):
            continue
        whole = node.inputs[0].producer() if node.inputs[0] is not None else None
        source = whole.inputs[0] if whole is not None and is_op(whole, "QuantizeLinear") else None
        if whole is not None and source is not None and PICKED in whole.metadata_props:
            ir.convenience.replace_all_uses_with(node.outputs[0], source)


def _join(graph: ir.Graph) -> list[str]:
    found = []
    known: dict[Any, ir.Value] = {}
    for node in list(graph):
        about = numbers(node)
        source = node.inputs[0] if about is not None else None
        if about is None or source is None or constant(source) is not None:
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            continue
        maker = source.producer()
        back = numbers(maker) if is_op(maker, "DequantizeLinear") else None
        if is_op(node, "QuantizeLinear") and back == about and maker is not None:
            same = maker.inputs[0]
        else:
            same = known.setdefault((id(source), node.op_type, about), output)
        if same is not None and same is not output:
            ir.convenience.replace_all_uses_with(output, same)
            found.append(str(output.name))
    return found
