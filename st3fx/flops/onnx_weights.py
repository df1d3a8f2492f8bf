"""Weights of ONNX operators that are not what they look like: quantised, packed, or made.

A scalar of a quantised weight is zero where it equals its zero point. Weights of four bits and less
are packed into bytes, in blocks with a scale each; formats are those of ONNX Runtime's
``ContribOperators.md``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import numpy as np
import onnx

from st3fx.flops import onnx_node
from st3fx.flops.onnx_values import Array, Values
from st3fx.flops.operand import Constant, Operand

_FACTORS: Final[dict[str, tuple[int, ...]]] = {
    "Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1),
    "Einsum": (0, 1, 2, 3), "LSTM": (0, 1, 2), "GRU": (0, 1, 2), "RNN": (0, 1, 2),
    "ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QLinearConv": (0, 3), "QLinearMatMul": (0, 3),
    "FusedConv": (0, 1), "FusedGemm": (0, 1), "FusedMatMul": (0, 1), "TransposeMatMul": (0, 1),
    "FusedMatMulActivation": (0, 1), "GemmFastGelu": (0, 1), "QGemm": (0, 3),
    "MatMulInteger16": (0, 1), "MatMulIntegerToFloat": (0, 1), "DynamicQuantizeMatMul": (0, 1),
    "MatMulNBits": (0, 1), "MatMulBnb4": (0, 1), "Attention": (0, 1), "QAttention": (0, 1),
    "DynamicQuantizeLSTM": (0, 1, 2), "DeformConv": (0, 1),
}  # fmt: skip
"""Operator -> which of its inputs are multiplied with each other."""

ZERO_POINTS: Final[dict[str, tuple[int, int, int]]] = {
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, -1),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
    "QGemm": (3, 5, -1),
    "MatMulIntegerToFloat": (1, 5, -1),
    "DynamicQuantizeMatMul": (1, 3, -1),
    "QAttention": (1, 7, -1),
}
"""Operator -> its quantised weight, the value in it that stands for zero, and the axis of the
weight along which there may be several of these."""

_MADE: Final[dict[str, int]] = {
    "Conv": 0, "ConvTranspose": 0, "FusedConv": 0, "Gemm": 0, "FusedGemm": 0, "MatMul": 2,
    "FusedMatMul": 2,
}  # fmt: skip
"""Operators whose input 1 is a weight where it depends on no input of the graph, however it was
made, and the dimensions that it must have for it: a batch of matrices may as well be what a layer
makes of a learned query."""


def is_product(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies tensors with each other and adds up: what layers do."""
    return node.op_type in _FACTORS and not (
        node.op_type == "Attention" and node.domain in onnx_node.STANDARD
    )


def factors(node: onnx.NodeProto) -> tuple[int, ...]:
    """Which inputs of a product are multiplied with each other: not its bias, nor a first state."""
    return _FACTORS[node.op_type]


def hidden(node: onnx.NodeProto, opaque: Mapping[str, str]) -> str:
    """What makes a weight whose zeros nobody knows; empty where there is none."""
    bits = onnx_node.attributes(node).get("bits", 4) if node.op_type == "MatMulNBits" else 4
    if bits not in _BITS:
        return f"a packing of {bits} bits"
    inputs = [node.input[i] for i in _FACTORS.get(node.op_type, ()) if i < len(node.input)]
    return next((opaque[name] for name in inputs if name in opaque), "")


def replace(
    node: onnx.NodeProto,
    operands: list[Operand | None],
    values: Values,
    made: Collection[str],
    is_dependent: Callable[[str], bool],
) -> None:
    """Put the weights of a node, as they multiply, in the places of what is stored.

    Args:
        node: The node that multiplies with them.
        operands: Its inputs; changed.
        values: The constants of the graph.
        made: Names of those that are activations of layers which read constants alone.
        is_dependent: Whether a value depends on an input of the graph.
    """
    if node.op_type in PACKED:
        for index, constant in PACKED[node.op_type](node, values):
            shape = tuple(constant.tensor.shape)
            operands[index] = Operand(shape, 1, floating=False, constant=constant)
        return
    if node.op_type in ZERO_POINTS:
        weight, zero, axis = ZERO_POINTS[node.op_type]
        if onnx_node.attributes(node).get("transB"):
            axis = 0
        name = node.input[weight]
        if zero < len(node.input) and name in values and name not in made:
            constant = values.constant(name, node.input[zero], axis)
            operands[weight] = _with(operands[weight], constant)
        return
    dims = _MADE.get(node.op_type)
    if dims is not None and node.input[1] in made and is_dependent(node.input[0]):
        operand = operands[1]
        if operand is not None and dims in (0, len(operand.shape)):
            operands[1] = _with(operand, values.constant(node.input[1]))


def _with(operand: Operand | None, constant: Constant) -> Operand:
    assert operand is not None
    return dataclasses.replace(operand, constant=constant)


Packed = list[tuple[int, Constant]]


def _blocks_of_bits(node: onnx.NodeProto, values: Values) -> Packed:
    """``MatMulNBits``: (N, blocks, bytes of a block), low bits first; zero is 2^(bits − 1)."""
    about = onnx_node.attributes(node)
    rows, columns, bits = about["N"], about["K"], about.get("bits", 4)
    given = _arrays(node, values, 1, 2, 3, 4)
    if given is None:
        return []
    packed, scales, zeros, order = given
    codes = _unpacked(packed.reshape(rows, -1), bits)[:, :columns]
    blocks = -(-columns // about["block_size"])
    if zeros is None:
        zero = np.full((rows, blocks), 1 << (bits - 1))
    elif zeros.dtype == np.uint8:
        zero = _unpacked(zeros.reshape(rows, -1), bits)[:, :blocks]
    else:
        zero = zeros.reshape(rows, blocks)
    spread = np.repeat(np.arange(blocks), about["block_size"])[:columns]
    if order is not None:
        spread = order[:columns]
    mask = (codes != zero[:, spread]) & (scales.reshape(rows, blocks) != 0)[:, spread]
    return [(1, values.unpacked(node.input[1], mask.T, 1))]


def _unpacked(packed: Array, bits: int) -> Array:
    """(rows, bytes) -> (rows, codes), the lowest bits of a byte first."""
    stored = packed.view(np.uint8)
    parts = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, 2).reshape(len(stored), -1)


_BITS = (1, 2, 4, 8)


def _four_bits(node: onnx.NodeProto, values: Values) -> Packed:
    """``MatMulBnb4``: codes of (N, K) in one row, high bits first, of a table with one zero."""
    about = onnx_node.attributes(node)
    given = _arrays(node, values, 1, 2)
    if given is None:
        return []
    packed, scales = given
    rows, columns, size = about["N"], about["K"], about["block_size"]
    flat = packed.reshape(-1).view(np.uint8)
    codes = np.stack([flat >> 4, flat & 15], 1).reshape(-1)[: rows * columns]
    # Type 1 is NF4, a table of sixteen rising numbers; type 0 is FP4, a sign and three bits.
    zero = codes == 7 if about["quant_type"] == 1 else codes & 7 == 0
    spread = np.repeat(np.arange(scales.size), size)[: rows * columns]
    mask = (~zero & (scales.reshape(-1) != 0)[spread]).reshape(rows, columns)
    return [(1, values.unpacked(node.input[1], mask.T, 1))]


def _recurrent(node: onnx.NodeProto, values: Values) -> Packed:
    """``DynamicQuantizeLSTM``: (directions, inputs, gates) for the input and for the state."""
    found: Packed = []
    for index, place in ((1, 9), (2, 11)):
        given = _arrays(node, values, index, place)
        if given is not None:
            weight, zero = given
            if zero is not None:  # one for each direction, or for each gate too
                weight = weight != zero.reshape(*zero.shape[:1], 1, -1)
            constant = values.unpacked(node.input[index], (weight != 0).swapaxes(1, 2), 1)
            found.append((index, constant))
    return found


def _arrays(node: onnx.NodeProto, values: Values, *places: int) -> list[Any] | None:
    """Constant inputs, ``None`` for one that is left out; nothing where one is computed."""
    names = [node.input[place] if place < len(node.input) else "" for place in places]
    if any(name and name not in values for name in names):
        return None
    return [values.array(name) if name else None for name in names]


PACKED: Final[dict[str, Callable[[onnx.NodeProto, Values], Packed]]] = {
    "MatMulNBits": _blocks_of_bits,
    "MatMulBnb4": _four_bits,
    "DynamicQuantizeLSTM": _recurrent,
}
"""Operator -> its weights as they multiply, by input."""
