"""Brings what different quantizers write into one form: bytes between Q and DQ, weights int8.

1. ``com.microsoft`` has the same two operators for 8 bits as ONNX.
2. A weight that is stored as floats before a ``QuantizeLinear`` is quantized now (NNCF, SparseML).
3. ``QLinearConv`` and its kind, and static ``ConvInteger`` and ``MatMulInteger`` with the sum, cast
   and product behind them (SparseML), become float operators between Q and DQ.
4. int8 activations become uint8: 128 is added to bytes and zero points. Where something else reads
   the bytes, or nothing here makes them, they stay, and what reads their numbers gets uint8 behind.
5. Equal conversions of one tensor become one; Q behind DQ of the same scale and zero point goes.
6. What only picks from the numbers of quantized images (``MaxPool``, ``Relu``, a split) gives such
   numbers: where no Q follows, Q and DQ of the same scale do (NNCF leaves them out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.quant_kernels.qdq import (
    ChannelNumbers,
    Numbers,
    channel_numbers,
    numbers,
    quantized,
)
from st3fx.passes.onnx.quant_kernels.quant_role import picture
from st3fx.passes.onnx.values import Array, constant, initializer, is_op, only_user

_MICROSOFT = "com.microsoft"
_BOTH = ("QuantizeLinear", "DequantizeLinear")


class QdqForm(GraphPass):
    """Rewrites a graph in that form, in place."""

    def apply(self, model: ir.Model) -> bool:
        """Rewrite; ``changed`` has the names of what is another node now."""
        graph = model.graph
        for rewrite in (_one_domain, _quantize_weights, _unpack, _unsigned, _pick, _join):
            self.changed += rewrite(graph)
        if self.changed:
            common.RemoveUnusedNodesPass()(model)
        return bool(self.changed)


def _one_domain(graph: ir.Graph) -> list[str]:
    found = []
    for node in graph:
        if node.domain != _MICROSOFT or node.op_type not in _BOTH:
            continue
        types = {constant(v).dtype.itemsize for v in node.inputs[2:] if constant(v) is not None}  # type: ignore[union-attr]
        if types <= {1}:
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
        name = str(node.inputs[0].name)  # type: ignore[union-attr]
        _replace(node, initializer(graph, f"{name}.quantized", whole))
        found.append(name)
    return found


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


class _Tape:
    """New nodes before one that goes."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node

    def __call__(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Any = (), name: str = ""
    ) -> ir.Value:
        kept = [item for item in attributes if item.name != "channels_last"]
        made = ir.Node("", op, inputs, kept, num_outputs=1, name=name or None)
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def dequantized(self, *parts: ir.Value | None, axis: int | None = None) -> ir.Value:
        """A float value of bytes with scale and zero point."""
        about = [] if axis is None else [ir.AttrInt64("axis", axis)]
        given = list(parts)
        while given and given[-1] is None:
            given.pop()
        value = self("DequantizeLinear", given, about)
        value.dtype = ir.DataType.FLOAT
        return value

    def quantized(self, value: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> None:
        """Bytes in the place of what the node gave."""
        old = self.node.outputs[0]
        made = self("QuantizeLinear", [value, scale] if zero is None else [value, scale, zero])
        made.shape, made.type, made.name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        old.name = f"{made.name}.was"
        value.name = f"{made.name}.float"

    def constant(self, name: str, array: Array) -> ir.Value:
        """An initializer."""
        return initializer(self.graph, name, array)


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _are_single(node: ir.Node, *indices: int) -> bool:
    """Whether inputs are constants of one number, where they are there."""
    arrays = [constant(node.inputs[index]) for index in indices if index < len(node.inputs)]
    return all(array is not None and array.size == 1 for array in arrays)


def _qlinear_conv(tape: _Tape, node: ir.Node) -> bool:
    if not _are_single(node, 1, 2, 6, 7):
        return False
    x, w = tape.dequantized(*node.inputs[:3]), tape.dequantized(*node.inputs[3:6], axis=0)
    inputs = [x, w]
    if (whole := _at(node, 8)) is not None:
        scales, array = (constant(node.inputs[index]) for index in (1, 4)), constant(whole)
        x_scale, w_scale = scales
        if x_scale is None or w_scale is None or array is None:
            return False
        scale = np.broadcast_to(x_scale.reshape(-1) * w_scale.reshape(-1), array.shape)
        name = f"{whole.name}.scale"
        inputs.append(tape.dequantized(whole, tape.constant(name, scale), axis=0))
    tape.quantized(tape("Conv", inputs, node.attributes.values()), *node.inputs[6:8])
    return True


def _qlinear_matmul(tape: _Tape, node: ir.Node) -> bool:
    array = constant(node.inputs[3])
    if not _are_single(node, 1, 2, 6, 7) or array is None or array.ndim != 2:
        return False
    pair = [tape.dequantized(*node.inputs[:3]), tape.dequantized(*node.inputs[3:6], axis=1)]
    tape.quantized(tape("MatMul", pair), *node.inputs[6:8])
    return True


def _qlinear_pair(op: str) -> Callable[[_Tape, ir.Node], bool]:
    def rewrite(tape: _Tape, node: ir.Node) -> bool:
        if not _are_single(node, 1, 4, 6):
            return False
        pair = [tape.dequantized(*node.inputs[:3]), tape.dequantized(*node.inputs[3:6])]
        tape.quantized(tape(op, pair), _at(node, 6), _at(node, 7))
        return True

    return rewrite


def _qlinear_one(op: str) -> Callable[[_Tape, ir.Node], bool]:
    def rewrite(tape: _Tape, node: ir.Node) -> bool:
        if node.attributes.get_int("channels_last", 0) or not _are_single(node, 1, 3):
            return False
        value = tape(op, [tape.dequantized(*node.inputs[:3])], node.attributes.values())
        tape.quantized(value, _at(node, 3), _at(node, 4))
        return True

    return rewrite


def _qlinear_concat(tape: _Tape, node: ir.Node) -> bool:
    if not _are_single(node, 0, *range(3, len(node.inputs), 3)):
        return False
    values = [tape.dequantized(*node.inputs[i : i + 3]) for i in range(2, len(node.inputs), 3)]
    tape.quantized(tape("Concat", values, node.attributes.values()), *node.inputs[:2])
    return True


def _integer(op: str) -> Callable[[_Tape, ir.Node], bool]:
    """``ConvInteger`` or ``MatMulInteger``, ``Add`` of an int32 bias, ``Cast``, ``Mul`` by a scale.

    The scale is that of input times weight: the weight's is what is left of it.
    """

    def rewrite(tape: _Tape, node: ir.Node) -> bool:
        x, w = node.inputs[0], node.inputs[1]
        maker = x.producer() if x is not None else None
        if x is None or w is None or not is_op(maker, "QuantizeLinear") or constant(w) is None:
            return False
        last, offsets = only_user(node.outputs[0]), None
        value = node.outputs[0]
        if last is not None and is_op(last, "Add"):
            offsets = constant(next((v for v in last.inputs if v is not value), None))
            if offsets is None:
                return False
            value = last.outputs[0]
            last = only_user(value)
        if last is None or not is_op(last, "Cast"):
            return False
        value, scaling = last.outputs[0], only_user(last.outputs[0])
        if scaling is None or not is_op(scaling, "Mul"):
            return False
        scale = constant(next((v for v in scaling.inputs if v is not value), None))
        if scale is None or scale.dtype != np.float32:
            return False
        return _float_product(tape, node, op, scale, offsets, scaling)

    return rewrite


def _float_product(
    tape: _Tape, node: ir.Node, op: str, scale: Array, offsets: Array | None, last: ir.Node
) -> bool:
    x, w = node.inputs[:2]
    array, maker = constant(w), x.producer() if x is not None else None
    axis, name = (0 if op == "Conv" else 1), str(w.name)  # type: ignore[union-attr]
    about = numbers(maker)
    if array is None or maker is None or about is None or array.ndim <= axis:
        return False
    size = array.shape[axis]
    scales = _along(scale / np.float32(about.scale), op, size)
    shifts = np.zeros(size, np.int32) if offsets is None else _along(offsets, op, size)
    if scales is None or shifts is None:
        return False
    held = tape.constant(f"{name}.scale", scales)
    zero = _at(node, 3)
    inputs = [tape.dequantized(x, maker.inputs[1], _at(node, 2)),
              tape.dequantized(w, held, _wide(tape, zero, size), axis=axis)]  # fmt: skip
    units = tape.constant(f"{name}.units", (scales * np.float32(about.scale)).astype(np.float32))
    whole = tape.constant(f"{name}.offsets", shifts.astype(np.int32))
    bias = tape.dequantized(whole, units, axis=0)
    if op == "Conv":
        value = tape("Conv", [*inputs, bias], node.attributes.values())
    else:
        value = tape("Add", [tape("MatMul", inputs), bias])
    old = last.outputs[0]
    value.shape, value.dtype, value.name = old.shape, ir.DataType.FLOAT, old.name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    old.name = f"{value.name}.was"
    return True


def _along(array: Array, op: str, size: int) -> Array | None:
    """A value for each output channel; ``None`` where it lies along another dimension."""
    if array.size != 1:
        place = -3 if op == "Conv" else -1
        if array.size != size or array.ndim < -place or array.shape[place] != size:
            return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (size,)))


def _wide(tape: _Tape, zero: ir.Value | None, size: int) -> ir.Value | None:
    """A zero point for each channel, as its scale is."""
    array = constant(zero)
    if zero is None or array is None or array.size == size:
        return zero
    return tape.constant(f"{zero.name}.wide", np.full(size, array.reshape(-1)[0], array.dtype))


_PACKED: dict[tuple[str, str], Callable[[_Tape, ir.Node], bool]] = {
    ("", "QLinearConv"): _qlinear_conv,
    ("", "QLinearMatMul"): _qlinear_matmul,
    ("", "ConvInteger"): _integer("Conv"),
    ("", "MatMulInteger"): _integer("MatMul"),
    (_MICROSOFT, "QLinearConv"): _qlinear_conv,
    (_MICROSOFT, "QLinearAdd"): _qlinear_pair("Add"),
    (_MICROSOFT, "QLinearMul"): _qlinear_pair("Mul"),
    (_MICROSOFT, "QLinearConcat"): _qlinear_concat,
    (_MICROSOFT, "QLinearSigmoid"): _qlinear_one("Sigmoid"),
    (_MICROSOFT, "QLinearLeakyRelu"): _qlinear_one("LeakyRelu"),
    (_MICROSOFT, "QLinearGlobalAveragePool"): _qlinear_one("GlobalAveragePool"),
    (_MICROSOFT, "QLinearAveragePool"): _qlinear_one("AveragePool"),
}
"""Domain and operator that holds its conversions -> what writes them out."""


def _unpack(graph: ir.Graph) -> list[str]:
    found = []
    for node in list(graph):
        rewrite = _PACKED.get((node.domain, node.op_type))
        if rewrite is not None and rewrite(_Tape(graph, node), node):
            found.append(str(node.name or node.outputs[0].name))
            node.outputs[0].name = node.outputs[0].name or "was"
    for node in list(graph):
        if _bytes_alone(node):
            _around(graph, node)
            found.append(str(node.name or node.outputs[0].name))
    return found


_ON_BYTES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")


def _bytes_alone(node: ir.Node) -> bool:
    """Whether an operator works on bytes without conversions around it."""
    source = node.inputs[0] if node.inputs else None
    maker = source.producer() if source is not None else None
    made = is_op(maker, "QuantizeLinear") and numbers(maker) is not None
    return made and is_op(node, *_ON_BYTES) and len(node.outputs) == 1


def _around(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    maker = source.producer()
    assert maker is not None
    tape = _Tape(graph, node)
    value = tape(node.op_type, [tape.dequantized(source, *maker.inputs[1:]), *node.inputs[1:]],
                 node.attributes.values())  # fmt: skip
    tape.quantized(value, *(_at(maker, 1), _at(maker, 2)))


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
        source = quantized(node.inputs[0]) if is_op(node, *_PICKS) else None
        if source is None or picture(node.inputs[0]) is None:
            continue
        maker = node.inputs[0].producer()  # type: ignore[union-attr]
        assert maker is not None
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
