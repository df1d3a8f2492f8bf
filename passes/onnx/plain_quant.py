"""Quantized operators of ours as ``QuantizeLinear``, an operator of ONNX, ``DequantizeLinear``.

Ours know multipliers, not scales: here a byte of the output is 1, a byte of the input is 1, and a
weight has the multiplier for a scale. What is counted and what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.tape import Tape
from st3fx.passes.onnx.values import Array
from st3fx.runtime import operators


def _bytes(tape: Tape, op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
    """A node whose output is uint8."""
    value = tape(op, inputs, **attributes)
    value.dtype = ir.DataType.UINT8
    return value


def _zero(tape: Tape, zero: int) -> ir.Value:
    return tape.constant(f"zero_point_{zero}", np.array(zero, np.uint8))


def _scalar(tape: Tape, number: float) -> ir.Value:
    return tape.constant(f"number_{number:.9g}", np.array(number, np.float32))


def _floats(tape: Tape, value: ir.Value | None, scale: float, zero: str = "") -> ir.Value:
    """Bytes as numbers; ``zero`` names the attribute with the zero point."""
    place = tape.about.get_int(zero, 0) if zero else 0
    return tape("DequantizeLinear", [value, _scalar(tape, scale), _zero(tape, place)])


def _rounded(tape: Tape, value: ir.Value, zero: int, prefix: str = "") -> ir.Value:
    """Numbers as bytes within the operator's range."""
    low, high = (tape.about.get_int(f"{prefix}{name}", bound) for name, bound in _LIMITS.items())
    if (low, high) != (0, 255):
        limits = [_scalar(tape, float(bound - zero)) for bound in (low, high)]
        value = tape("Clip", [value, *limits])
    return _bytes(tape, "QuantizeLinear", [value, _scalar(tape, 1.0), _zero(tape, zero)])


_LIMITS = {"minimum": 0, "maximum": 255}


def _y_zero(tape: Tape) -> int:
    return tape.about.get_int("y_zero_point", 0)


def _conv(tape: Tape) -> ir.Value:
    kernel, group = tuple(tape.about.get_ints("kernel_shape")), tape.about.get_int("group", 1)
    array = tape.blocks(tape.about.get_int("channels") // group, kernel)
    return _convolved(tape, array, 4, group)


def _depthwise(tape: Tape) -> ir.Value:
    (array,) = tape.constants(1)
    if tape.about.get_string("stands_for", "convolution") == "batch_norm":
        return _batch_norm(tape, array)
    return _convolved(tape, array, 2, tape.about.get_int("channels"))


def _convolved(tape: Tape, array: Array, after: int, group: int) -> ir.Value:
    """A convolution whose bias and multiplier are the inputs from ``after`` on."""
    multiplier = tape.input(after + 1)
    weight = tape("DequantizeLinear", [tape.named_weight(array), multiplier], axis=0)
    bias = tape("DequantizeLinear", [tape.input(after), multiplier], axis=0)
    inputs = [_floats(tape, tape.input(0), 1.0, "x_zero_point"), weight, bias]
    value = tape("Conv", inputs, group=group, **tape.window())
    made = _rounded(tape, value, _y_zero(tape))
    residual = tape.input(after + 2)
    return made if residual is None else _sum(tape, made, residual, "sum_factor", "residual_factor")


def _batch_norm(tape: Tape, array: Array) -> ir.Value:
    offsets, multiplier = tape.constants(2, 3)
    scale = array.reshape(-1) * multiplier
    parts = {"scale": scale, "shift": offsets * multiplier, "mean": np.zeros_like(scale),
             "variance": np.ones_like(scale)}  # fmt: skip
    name = str(tape.node.outputs[0].name)
    held = [tape.constant(f"{name}.{key}", part.astype(np.float32)) for key, part in parts.items()]
    value = _floats(tape, tape.input(0), 1.0, "x_zero_point")
    made = tape("BatchNormalization", [value, *held], epsilon=0.0)
    return _rounded(tape, made, _y_zero(tape))


def _sum(tape: Tape, first: ir.Value | None, second: ir.Value | None, *factors: str) -> ir.Value:
    """``first·factor + second·factor + offset`` of bytes."""
    pair = [
        _floats(tape, value, tape.about.get_float(name))
        for value, name in zip((first, second), factors, strict=True)
    ]
    offset = _scalar(tape, tape.about.get_float("offset"))
    prefix = "sum_" if factors[0] == "sum_factor" else ""
    return _rounded(tape, tape("Add", [tape("Add", pair), offset]), 0, prefix)


def _linear(tape: Tape) -> ir.Value:
    features, bias = tape.about.get_int("features"), tape.input(4)
    scale, x = tape.about.get_float("x_scale", 0.0), tape.input(0)
    if scale:
        about = [_scalar(tape, scale), _zero(tape, tape.about.get_int("x_zero_point", 0))]
        value = tape("DequantizeLinear",
                     [_bytes(tape, "QuantizeLinear", [x, *about]), *about])  # fmt: skip
    else:
        value = tape("DequantizeLinear", list(_dynamic(tape, x)))
    held = tape.named_weight(tape.blocks(features, ()))
    weight = tape("DequantizeLinear", [held, tape.input(5)], axis=0)
    if x is not None and x.shape is not None and len(x.shape) == 2:
        return tape.finish(tape("Gemm", [value, weight, bias], transB=1))
    made = tape("MatMul", [value, tape("Transpose", [weight], perm=[1, 0])])
    return tape.finish(made if bias is None else tape("Add", [made, bias]))


def _dynamic(tape: Tape, value: ir.Value | None) -> tuple[ir.Value, ...]:
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
    tape.graph.insert_before(tape.node, node)
    return tuple(node.outputs)


def _lookup(tape: Tape) -> ir.Value:
    return _looked_up(tape, tape.input(1), tape.input(0))


def _looked_up(tape: Tape, table: ir.Value | None, value: ir.Value | None) -> ir.Value:
    places = tape("Cast", [value], to=ir.DataType.INT32)
    places.dtype = ir.DataType.INT32
    return _bytes(tape, "Gather", [table, places])


def _max_pool(tape: Tape) -> ir.Value:
    return _bytes(tape, "MaxPool", [tape.input(0)], **tape.window("ceil_mode"))


def _average(op: str, *names: str) -> Callable[[Tape], ir.Value]:
    def write(tape: Tape) -> ir.Value:
        value = _floats(tape, tape.input(0), tape.about.get_float("factor"), "x_zero_point")
        about = tape.window(*names) if names else {}
        return _rounded(tape, tape(op, [value], **about), _y_zero(tape))

    return write


def _scale(tape: Tape) -> ir.Value:
    value = _floats(tape, tape.input(0), tape.about.get_float("factor"), "x_zero_point")
    scale = _floats(tape, tape.input(1), 1.0, "s_zero_point")
    return _rounded(tape, tape("Mul", [value, scale]), _y_zero(tape))


def _channels(tape: Tape) -> ir.Value:
    counts = tape.about.get_ints("channels")
    values = list(tape.node.inputs)[: len(counts)]
    if len(tape.node.inputs) > len(counts):
        (found,) = tape.constants(len(counts))
        tables = [tape.constant(f"table_{i}", table) for i, table in enumerate(found)]
        values = [_looked_up(tape, *pair) for pair in zip(tables, values, strict=True)]
    value = values[0] if len(values) == 1 else _bytes(tape, "Concat", values, axis=1)
    sources = tape.about.get_ints("sources", ())
    if not sources:
        return _bytes(tape, "Identity", [value])
    places = tape.constant("sources", np.array(sources, np.int64))
    return _bytes(tape, "Gather", [value, places], axis=1)


def _into_bytes(tape: Tape) -> ir.Value:
    about = _scalar(tape, tape.about.get_float("scale")), tape.about.get_int("zero_point", 0)
    return _bytes(tape, "QuantizeLinear", [tape.input(0), about[0], _zero(tape, about[1])])


PLAIN_QUANT: dict[str, Callable[[Tape], ir.Value]] = {
    operators.QUANT_CONV: _conv,
    operators.QUANT_DEPTHWISE_CONV: _depthwise,
    operators.QUANT_LINEAR: _linear,
    operators.QUANT_ADD: lambda tape: _sum(
        tape, tape.input(0), tape.input(1), "a_factor", "b_factor"
    ),
    operators.QUANT_LOOKUP: _lookup,
    operators.QUANT_MAX_POOL: _max_pool,
    operators.QUANT_AVERAGE_POOL: _average("AveragePool", "ceil_mode", "count_include_pad"),
    operators.QUANT_GLOBAL_AVERAGE_POOL: _average("GlobalAveragePool"),
    operators.QUANT_SCALE: _scale,
    operators.QUANT_CHANNELS: _channels,
    operators.QUANTIZE_IMAGE: _into_bytes,
    operators.DEQUANTIZE_IMAGE: lambda tape: _floats(
        tape, tape.input(0), tape.about.get_float("scale"), "zero_point"
    ),
    operators.QUANT_LAYOUT: lambda tape: _bytes(tape, "Identity", [tape.input(0)]),
}
"""Operator of ours -> what ONNX has for it."""
