"""Operators that hold their conversions, as float operators between Q and DQ.

``QLinearConv`` and its kind, ``QGemm``, ``ConvInteger`` and ``MatMulInteger`` with the sum, cast
and product behind them, ``MatMulIntegerToFloat``; ``DynamicQuantizeMatMul`` becomes what a dynamic
quantizer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.quant_kernels.qdq import numbers
from st3fx.passes.onnx.values import Array, constant, initializer, is_op, only_user

MICROSOFT = "com.microsoft"


class _Tape:
    """New nodes before one that goes."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node

    def __call__(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: Any = (), name: str = ""
    ) -> ir.Value:
        return self.several(1, op, inputs, attributes, name)[0]

    def several(
        self,
        outputs: int,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Any = (),
        name: str = "",
    ) -> Sequence[ir.Value]:
        """All outputs of a node."""
        kept = [item for item in attributes if item.name != "channels_last"]
        made = ir.Node("", op, inputs, kept, num_outputs=outputs, name=name or None)
        self.graph.insert_before(self.node, made)
        return made.outputs

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

    def floats(self, value: ir.Value, old: ir.Value) -> None:
        """A float value in the place of another one."""
        value.shape, value.dtype, value.name = old.shape, ir.DataType.FLOAT, old.name
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name = f"{value.name}.was"

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


def _qgemm(tape: _Tape, node: ir.Node) -> bool:
    about = node.attributes
    scales = [constant(node.inputs[index]) for index in (1, 4)]
    x_scale, w_scale = scales
    if x_scale is None or w_scale is None or not _are_single(node, 1, 2, 7, 8):
        return False
    axis = 0 if about.get_int("transB", 0) else 1
    inputs = [tape.dequantized(*node.inputs[:3]), _weight(tape, *node.inputs[3:6], axis=axis)]
    if (whole := _at(node, 6)) is not None:
        array = constant(whole)
        if array is None:
            return False
        unit = about.get_float("alpha", 1.0) * x_scale.reshape(-1) * w_scale.reshape(-1)
        scale = np.broadcast_to(unit, array.reshape(-1).shape).astype(np.float32)
        flat = tape.constant(f"{whole.name}.flat", array.reshape(-1))
        inputs.append(tape.dequantized(flat, tape.constant(f"{whole.name}.scale", scale), axis=0))
    value = tape("Gemm", inputs, about.values())
    if _at(node, 7) is None:
        tape.floats(value, node.outputs[0])
    else:
        tape.quantized(value, _at(node, 7), _at(node, 8))
    return True


def _matmul_to_float(tape: _Tape, node: ir.Node) -> bool:
    x, w, x_scale, w_scale, x_zero, w_zero, bias = (_at(node, index) for index in range(7))
    if constant(w) is None or constant(w_scale) is None:
        return False
    maker = x.producer() if x is not None else None
    if is_op(maker, "DynamicQuantizeLinear"):
        return _dynamic(tape, node, [x, x_scale, x_zero], [w, w_scale, w_zero], bias)
    if not _are_single(node, 2, 4):
        return False
    pair = [tape.dequantized(x, x_scale, x_zero), _weight(tape, w, w_scale, w_zero, axis=1)]
    value = tape("MatMul", pair)
    tape.floats(tape("Add", [value, bias]) if bias is not None else value, node.outputs[0])
    return True


def _dynamic_matmul(tape: _Tape, node: ir.Node) -> bool:
    x, w, w_scale, w_zero, bias = (_at(node, index) for index in range(5))
    if constant(w) is None or constant(w_scale) is None:
        return False
    found = tape.several(3, "DynamicQuantizeLinear", [x])
    return _dynamic(tape, node, found, [w, w_scale, w_zero], bias)


def _dynamic(
    tape: _Tape,
    node: ir.Node,
    x: Sequence[ir.Value | None],
    w: Sequence[ir.Value | None],
    bias: ir.Value | None,
) -> bool:
    """``MatMulInteger``, scaled afterwards; ``x`` and ``w`` are bytes, scale and zero point."""
    zeros = [value for value in (x[2], w[2]) if value is not None]
    sums = tape("Cast", [tape("MatMulInteger", [x[0], w[0], *zeros])], [ir.AttrInt64("to", 1)])
    value = tape("Mul", [sums, tape("Mul", [x[1], w[1]])])
    tape.floats(tape("Add", [value, bias]) if bias is not None else value, node.outputs[0])
    return True


def _weight(tape: _Tape, *parts: ir.Value | None, axis: int) -> ir.Value:
    """A float weight of bytes whose scale and zero point are of one kind: single or a vector."""
    whole, scale, zero = parts
    array, given = constant(scale), constant(zero)
    if scale is not None and array is not None and array.size == 1:
        scale = tape.constant(f"{scale.name}.single", array.reshape(()))
    if zero is not None and given is not None and array is not None:
        wide = np.broadcast_to(given.reshape(-1), array.reshape(-1).shape)
        shape = () if array.size == 1 else (array.size,)
        zero = tape.constant(f"{zero.name}.like", wide.reshape(shape))
    return tape.dequantized(whole, scale, zero, axis=axis)


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
    axis, name = (0 if op == "Conv" else 1), str(w.name if w is not None else "")
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
    tape.floats(value, last.outputs[0])
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
    (MICROSOFT, "QLinearConv"): _qlinear_conv,
    (MICROSOFT, "QGemm"): _qgemm,
    (MICROSOFT, "MatMulIntegerToFloat"): _matmul_to_float,
    (MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (MICROSOFT, "QLinearAdd"): _qlinear_pair("Add"),
    (MICROSOFT, "QLinearMul"): _qlinear_pair("Mul"),
    (MICROSOFT, "QLinearConcat"): _qlinear_concat,
    (MICROSOFT, "QLinearSigmoid"): _qlinear_one("Sigmoid"),
    (MICROSOFT, "QLinearLeakyRelu"): _qlinear_one("LeakyRelu"),
    (MICROSOFT, "QLinearGlobalAveragePool"): _qlinear_one("GlobalAveragePool"),
    (MICROSOFT, "QLinearAveragePool"): _qlinear_one("AveragePool"),
}
"""Domain and operator that holds its conversions -> what writes them out."""

PACKED_WEIGHT = {
    "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
}  # fmt: skip
"""Those with a weight -> its input."""


def unpack(graph: ir.Graph) -> list[str]:
    """Write them out; names of those that were one."""
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
