"""Reads ``QuantizeLinear`` and ``DequantizeLinear``: numbers, weights and biases behind them.

int8 activations count as uint8: 128 is added to their values and to their zero point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from st3fx.passes.onnx.values import Array, constant, is_op, only_user

SIGNED = 128
"""What is added to an int8 number."""

_TYPES = {ir.DataType.UINT8: False, ir.DataType.INT8: True}


@dataclass(frozen=True)
class Numbers:
    """What the bytes of a tensor mean: ``(byte − zero) · scale``.

    Attributes:
        scale: float32, above zero.
        zero: Of bytes from 0 to 255.
        signed: Whether the graph has int8 for them: bytes minus 128.
    """

    scale: float
    zero: int
    signed: bool

    @property
    def means(self) -> tuple[float, int]:
        """Scale and zero point: what two tensors have in common that need no conversion."""
        return self.scale, self.zero

    def byte(self, value: float) -> int:
        """The byte that a number becomes."""
        with np.errstate(over="ignore"):
            place = np.rint(np.float32(value) / np.float32(self.scale)) + self.zero
        return int(np.clip(place, 0, 255))


@dataclass(frozen=True)
class ChannelNumbers:
    """What the bytes of a tensor mean that has a scale for each channel.

    Attributes:
        scale: float32, above zero, of each channel.
        zero: Of all of them.
        signed: As in :class:`Numbers`.
    """

    scale: tuple[float, ...]
    zero: int
    signed: bool

    def byte(self, value: float) -> int | None:
        """The byte that a number becomes; ``None`` where that depends on the channel."""
        found = {Numbers(scale, self.zero, self.signed).byte(value) for scale in self.scale}
        return found.pop() if len(found) == 1 else None


def channel_numbers(node: ir.Node | None) -> ChannelNumbers | None:
    """The same for a scale along axis 1 and one zero point, as NNCF has it before depthwise layers.

    ``None`` for anything else.
    """
    if node is None or not is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    scale, about = constant(node.inputs[1]), node.attributes
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero, kind = constant(given), _type(node, given)
    if scale is None or scale.dtype != np.float32 or scale.ndim != 1 or scale.size < 2:
        return None
    if about.get_int("axis", 1) not in (1, -3) or about.get_int("block_size", 0) > 0:
        return None
    if kind not in _TYPES or not ((scale > 0) & np.isfinite(scale)).all():
        return None
    if (given is not None and zero is None) or (zero is not None and np.ptp(zero.astype(int))):
        return None
    place, signed = 0 if zero is None else int(zero.reshape(-1)[0]), _TYPES[kind]
    return ChannelNumbers(tuple(map(float, scale)), place + SIGNED * signed, signed)


def numbers(node: ir.Node | None) -> Numbers | None:
    """Scale and zero point of a ``QuantizeLinear`` or ``DequantizeLinear`` of a whole tensor.

    ``None`` where they are computed, for each channel or block, or of other types than 8 bits and
    float32.
    """
    if node is None or not is_op(node, "QuantizeLinear", "DequantizeLinear"):
        return None
    scale = constant(node.inputs[1])
    if scale is None or scale.dtype != np.float32 or scale.size != 1:
        return None
    if not 0 < scale.item() < np.inf or node.attributes.get_int("block_size", 0) > 0:
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero, kind = constant(given), _type(node, given)
    if kind not in _TYPES or (given is not None and (zero is None or zero.size != 1)):
        return None
    signed = _TYPES[kind]
    place = int(zero.item()) if zero is not None else 0
    return Numbers(float(scale.item()), place + SIGNED * signed, signed)


def _type(node: ir.Node, zero: ir.Value | None) -> ir.DataType | None:
    """Of the bytes; ``None`` where the other side is not float32."""
    quantizes = node.op_type == "QuantizeLinear"
    floats = node.inputs[0] if quantizes else node.outputs[0]
    if floats is not None and floats.dtype not in (None, ir.DataType.FLOAT):
        return None
    held = constant(zero)
    if held is not None:
        return ir.DataType.from_numpy(held.dtype)
    whole = node.outputs[0] if quantizes else node.inputs[0]
    asked = node.attributes.get_int("output_dtype", 0) if quantizes else 0
    if asked:
        return ir.DataType(asked)
    if whole is not None and whole.dtype is not None:
        return whole.dtype
    return ir.DataType.UINT8 if quantizes and zero is None else None


def quantized(value: ir.Value | None) -> tuple[ir.Value, Numbers] | None:
    """The uint8 activation behind a float value, through its ``DequantizeLinear``."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear") or constant(node.inputs[0]) is not None:
        return None
    about, source = numbers(node), node.inputs[0]
    return None if about is None or about.signed or source is None else (source, about)


def quantized_channels(value: ir.Value | None) -> tuple[ir.Value, ChannelNumbers] | None:
    """The same with a scale for each channel."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear") or constant(node.inputs[0]) is not None:
        return None
    about, source = channel_numbers(node), node.inputs[0]
    return None if about is None or about.signed or source is None else (source, about)


def why_not(value: ir.Value | None) -> str:
    """Why no 8-bit activation is behind a float value, as a clause."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "DequantizeLinear"):
        return "its input is not quantized"
    if constant(node.inputs[0]) is not None:
        return "its input is a constant"
    return "its input is not 8 bits with one constant scale in float32"


def enters(value: ir.Value) -> bool:
    """Whether a tensor is quantized from floats in any case, and so may be into blocks at once.

    Behind an operator that ONNX Runtime runs on bytes it is not: that one gives bytes.
    """
    node = value.producer()
    if node is None or not is_op(node, "QuantizeLinear") or numbers(node) is None:
        return False
    source = node.inputs[0]
    if source is None or source.dtype != ir.DataType.FLOAT or constant(source) is not None:
        return False
    maker = source.producer()
    while maker is not None and is_op(maker, "Relu", "Clip") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is None or not any(
        given is not None and is_op(given.producer(), "DequantizeLinear") for given in maker.inputs
    )


@dataclass(frozen=True)
class QuantWeight:
    """A constant int8 weight.

    Attributes:
        name: Of the initializer.
        array: int8, output channels or features first.
        scale: float32 ``[K]``.
        shape: Of the weight in the file.
    """

    name: str
    array: Array
    scale: Array
    shape: tuple[int, ...]


def weight(value: ir.Value | None, axis: int, *, rank: int) -> QuantWeight | str:
    """The weight behind a float value, or why it is none that our operators multiply with.

    Args:
        value: What an operator reads.
        axis: Of output channels, in what it reads.
        rank: Dimensions that it must have.
    """
    node = value.producer() if value is not None else None
    order: tuple[int, ...] = tuple(range(rank))
    if node is not None and is_op(node, "Transpose") and node.inputs[0] is not None:
        order = tuple(node.attributes.get_ints("perm", order[::-1]))
        node = node.inputs[0].producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return "its weight is not quantized"
    array, scale = constant(node.inputs[0]), constant(node.inputs[1])
    if array is None or scale is None:
        return "its weight is computed"
    if reason := _unfit(array, scale, rank):
        return reason
    if node.attributes.get_int("block_size", 0) or scale.ndim > 1:
        return "its weight has a scale for each block"
    along = node.attributes.get_int("axis", 1) % rank
    wide = array.astype(np.int16) - _zero(node, along, rank)
    if wide.min(initial=0) < -128 or wide.max(initial=0) > 127:
        return "its weight is asymmetric: less its zero point it does not fit int8"
    if scale.size > 1 and order.index(along) != axis:
        return "its weight's scales are not those of output channels"
    placed = np.moveaxis(wide.astype(np.int8).transpose(order), axis, 0)
    scales = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (len(placed),)))
    name = str(node.inputs[0].name if node.inputs[0] is not None else "")
    return QuantWeight(name, np.ascontiguousarray(placed), scales, array.shape)


def _unfit(array: Array, scale: Array, rank: int) -> str:
    """Why a weight is of no use, by its types; empty where it is."""
    if array.dtype not in (np.int8, np.uint8):
        return f"its weight is {array.dtype}, not int8"
    if scale.dtype != np.float32:
        return f"its weight's scale is {scale.dtype}, not float32"
    if array.ndim != rank:
        return f"its weight has {array.ndim} dimensions, not {rank}"
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        return "its weight's scales are not numbers above zero"
    return ""


def _zero(node: ir.Node, axis: int, rank: int) -> Array:
    """Zero points of a ``DequantizeLinear``, to be subtracted from a weight."""
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None:
        return np.zeros(1, np.int16)
    wide = zero.astype(np.int16).reshape(-1)
    return wide if wide.size == 1 else wide.reshape([-1 if i == axis else 1 for i in range(rank)])


def bias(value: ir.Value | None, size: int) -> Array | None:
    """A constant bias as float64 ``[size]``, quantized or not; ``None`` where it is computed."""
    node = value.producer() if value is not None else None
    if node is not None and is_op(node, "DequantizeLinear"):
        whole, scale = constant(node.inputs[0]), constant(node.inputs[1])
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if whole is None or scale is None or scale.ndim > 1 or (zero is not None and zero.any()):
            return None
        array = whole.astype(np.float64) * scale.astype(np.float64).reshape(-1)
    else:
        found = constant(value)
        if found is None or found.dtype.kind != "f":
            return None
        array = found.astype(np.float64)
    if array.size not in (1, size) or (array.size == size and size not in array.shape[-1:]):
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (size,)))


@dataclass(frozen=True)
class Range:
    """Bytes that an activation like ReLU leaves.

    Attributes:
        value: What goes into the first of these nodes.
        minimum: Smallest byte.
        maximum: Largest byte.
    """

    value: ir.Value
    minimum: int = 0
    maximum: int = 255

    @property
    def limits(self) -> dict[str, int]:
        """As attributes, but for what is the default."""
        found = {"minimum": self.minimum} if self.minimum else {}
        return {**found, **({"maximum": self.maximum} if self.maximum < 255 else {})}


def behind_range(value: ir.Value, after: Numbers | ChannelNumbers) -> Range:
    """Go back over ``Relu`` and ``Clip`` that stand before a ``QuantizeLinear``.

    Rounding goes up where its argument does, so limits may be rounded by themselves.
    """
    low, high = 0, 255
    while (node := value.producer()) is not None and only_user(value) is not None:
        source = node.inputs[0] if node.inputs else None
        if source is None or only_user(source) is None:
            break
        if is_op(node, "Relu"):
            bounds: tuple[float | None, float | None] = (0.0, None)
        elif is_op(node, "Clip") and (limits := clip_limits(node)) is not None:
            bounds = limits
        elif is_op(node, "Identity"):
            bounds = (None, None)
        else:
            break
        least, most = (None if bound is None else after.byte(bound) for bound in bounds)
        if [least is None, most is None] != [bound is None for bound in bounds]:
            break
        # What is limited first lies within what is limited last, whatever its own limits are.
        least, most = 0 if least is None else least, 255 if most is None else most
        low, high = min(max(least, low), high), min(max(most, low), high)
        value = source
    return Range(value, low, high)


def clip_limits(node: ir.Node) -> tuple[float | None, float | None] | None:
    """Constant limits of ``Clip``, of inputs or, in old files, attributes."""
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        given = node.inputs[index] if len(node.inputs) > index else None
        if given is None:
            bound = node.attributes.get_float(name)
            found.append(bound)
            continue
        array = constant(given)
        if array is None or array.size != 1:
            return None
        found.append(float(array.item()))
    low, high = found
    ordered = (-np.inf if low is None else low) <= (np.inf if high is None else high)
    return (low, high) if ordered else None
