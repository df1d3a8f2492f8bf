"""The table of rules for ONNX Runtime's own operators: ``com.microsoft``.

They are written by its quantisers and by its optimiser. Formats: ``ContribOperators.md`` there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final

from st3fx.flops import elementwise, products
from st3fx.flops import onnx_rules as standard
from st3fx.flops.elementwise import MOMENTS, PER_OUTPUT, each, softmax, times
from st3fx.flops.onnx_node import OnnxCall
from st3fx.flops.onnx_rules import Rule
from st3fx.flops.operand import Constant, Counted, Elementwise, Lookup, Operand, Product

_ACTIVATIONS: Final = {"Relu": "relu", "LeakyRelu": "leaky_relu", "Clip": "clamp", "Tanh": "tanh",
                       "Sigmoid": "sigmoid", "HardSigmoid": "hardsigmoid",
                       "HardSwish": "hardswish", "Gelu": "gelu", "FastGelu": "gelu_tanh",
                       "Elu": "elu", "Softmax": "softmax"}  # fmt: skip


def _activation(call: OnnxCall) -> Iterable[Counted]:
    kind = call.attributes.get("activation")
    name = _ACTIVATIONS.get(kind or "", "")
    if name == "softmax":
        yield from softmax(call)
    elif kind:
        yield from elementwise.per_output(name or "relu", call.out)


def activated(rule: Rule) -> Rule:
    """A layer with the activation after it in one operator."""

    def both(call: OnnxCall) -> Iterable[Counted]:
        yield from rule(call)
        yield from _activation(call)

    return both


def fused_convolution(call: OnnxCall) -> Iterable[Counted]:
    """A convolution, its bias, what is added to it, and an activation."""
    yield from standard.convolution(1, 2)(call)
    yield from elementwise.bias(call.optional(3), call.out)
    yield from _activation(call)


def quantised_convolution(call: OnnxCall) -> Iterable[Counted]:
    """A quantised convolution whose images may have their channels last."""
    if call.attributes.get("channels_last"):
        x, out = call.x, call.out
        inputs = (_channels_first(x), *call.inputs[1:])
        call = dataclasses.replace(call, inputs=inputs, outputs=(_channels_first(out),))
    return standard.convolution(3, 8)(call)


def _channels_first(image: Operand) -> Operand:
    batch, *spatial, channels = image.shape
    return dataclasses.replace(image, shape=(batch, channels, *spatial), window=None)


def matmul(added: int | None = None) -> Rule:
    """The product of inputs 0 and 1, either of them transposed, and a bias."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        left, right = call.tensor(0), call.tensor(1)
        for name, moved in (("A", left), ("B", right)):
            turned = _turned(
                moved,
                batch=bool(call.attributes.get(f"transBatch{name}")),
                last=bool(call.attributes.get(f"trans{name}")),
            )
            left, right = (turned, right) if name == "A" else (left, turned)
        yield products.matrix_product("matmul", left, right)
        if added is not None:
            yield from elementwise.bias(call.optional(added), call.out)

    return rule


def _turned(x: Operand, *, batch: bool, last: bool) -> Operand:
    """An operand as it multiplies: ``transBatch`` moves dimension 0 behind the other batches."""
    order = list(range(len(x.shape)))
    if batch and len(order) > 2:
        order = [*order[1:-1], 0, order[-1]]
    if last and len(order) > 1:
        order[-2:] = order[:-3:-1]
    if order == sorted(order):
        return x
    constant = x.constant
    if constant is not None:
        constant = constant.part(("order", *order), constant.mask.permute(order))
    return dataclasses.replace(x, shape=tuple(x.shape[i] for i in order), constant=constant)


def quantised_gemm(call: OnnxCall) -> Iterable[Counted]:
    """A quantised product of two matrices, either of them transposed, and what is added to it."""
    inputs = (call.tensor(0), call.tensor(3), call.optional(6))
    yield from standard.gemm(dataclasses.replace(call, inputs=inputs))


def projected_attention(bias: int, mask: int, past: int, added: int) -> Rule:
    """Attention with the projection of its input to query, key and value.

    Args:
        bias: Which input is the projection's bias.
        mask: Which input hides positions.
        past: Which input has earlier keys and values, (2, batch, heads, length, size).
        added: Which input is added to the scores; -1 where there is none.
    """

    def rule(call: OnnxCall) -> Iterable[Counted]:
        x, weight = call.x, call.tensor(1)
        batch, length, _ = x.shape
        yield products.matrix_product("matmul", x, weight)
        out = Operand((batch, length, weight.shape[-1]))
        yield from elementwise.bias(call.optional(bias), out)
        sizes = call.attributes.get("qkv_hidden_sizes") or [weight.shape[-1] // 3] * 3
        earlier = call.optional(past)
        keys = length + (earlier.shape[3] if earlier is not None else 0)
        masks = [call.optional(index) for index in (mask, added) if index >= 0]
        heads = call.attributes["num_heads"]
        yield from _attention(heads, batch, length, keys, sizes[0], sizes[2], *masks)

    return rule


def multi_head_attention(call: OnnxCall) -> Iterable[Counted]:
    """Attention of (batch, length, heads · size), with a bias of query, key and value."""
    query, key, value = call.x, call.optional(1), call.optional(2)
    heads = call.attributes["num_heads"]
    if key is None or value is None or {len(o.shape) for o in (query, key, value)} != {3}:
        # Packed: (batch, length, heads, 3 or 2, size).
        yield from _packed_attention(query, key, heads)
        return
    past = call.optional(6)
    keys = key.shape[1] + (past.shape[2] if past is not None else 0)
    batch, length, size = query.shape
    masks = (call.optional(4), call.optional(5))
    yield from _attention(heads, batch, length, keys, size, value.shape[2], *masks)
    if call.optional(3) is not None:
        yield Elementwise("add", query.numel + key.numel + value.numel)


def _packed_attention(query: Operand, key: Operand | None, heads: int) -> Iterable[Counted]:
    batch, length = query.shape[:2]
    keys = length if key is None else key.shape[-2] if len(key.shape) == 4 else key.shape[1]
    size = query.shape[-1] * (heads if len(query.shape) > 3 else 1)
    yield from _attention(heads, batch, length, keys, size, size)


def _attention(
    heads: int,
    batch: int,
    length: int,
    keys: int,
    size: int,
    size_of_value: int,
    *masks: Operand | None,
) -> Iterable[Counted]:
    dense = batch * length * keys * (size + size_of_value)
    yield Product("attention", dense, dense, dense, dense)
    yield from elementwise.attention(heads * batch * length * keys, *masks)


def grouped_attention(call: OnnxCall) -> Iterable[Counted]:
    """Attention whose heads share keys and values; the present keys say how many there are."""
    query, present = call.x, call.outputs[1]
    heads, groups = call.attributes["num_heads"], call.attributes["kv_num_heads"]
    batch, length, width = query.shape
    size = width // heads if call.optional(1) is not None else width // (heads + 2 * groups)
    keys = present.shape[2] if present is not None else length
    yield from _attention(heads, batch, length, keys, size * heads, size * heads)


def skip_norm(call: OnnxCall) -> Iterable[Counted]:
    """A sum, perhaps a bias, and the layer norm of it."""
    yield Elementwise("add", call.x.numel)
    yield from elementwise.bias(call.optional(4), call.x)
    yield from elementwise.norm("layer_norm", call.x, call.optional(2), call.optional(3))


def skip_rms_norm(call: OnnxCall) -> Iterable[Counted]:
    """A sum, perhaps a bias, and the RMS norm of it."""
    yield Elementwise("add", call.x.numel)
    yield from elementwise.bias(call.optional(3), call.x)
    yield from elementwise.rms_norm(call.x, call.tensor(2))


def with_bias(op: str) -> Rule:
    """A function of a sum with a bias that may be left out."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        yield from elementwise.bias(call.optional(1), call.out)
        yield from elementwise.per_output(op, call.out)

    return rule


def quantised(op: str) -> Rule:
    """A function of each value, which is a quantised one."""
    return times(op, PER_OUTPUT[op])


def quantised_pool(call: OnnxCall) -> Iterable[Counted]:
    """An average pooling of quantised images."""
    if call.attributes.get("channels_last"):
        inputs, outputs = (_channels_first(call.x),), (_channels_first(call.out),)
        call = dataclasses.replace(call, inputs=inputs, outputs=outputs)
    return standard.pool("avg_pool")(call)


def embedded(call: OnnxCall) -> Iterable[Counted]:
    """The sum of two or three embeddings and its layer norm."""
    tables = [table for index in (2, 3, 4) if (table := call.optional(index)) is not None]
    yield from (Lookup(table.constant) for table in tables if table.constant is not None)
    yield Elementwise("add", (len(tables) - 1) * call.out.numel)
    yield Elementwise("layer_norm", (MOMENTS + 2) * call.out.numel)


def dynamic_lstm(call: OnnxCall) -> Iterable[Counted]:
    """An LSTM whose weights are quantised, (directions, inputs, gates)."""
    rows = math.prod(call.x.shape[:2])
    for index in (1, 2):
        weight = call.tensor(index)
        constant = weight.constant
        if constant is None:  # as it is stored
            weight = _turned(weight, batch=False, last=True)
        product = products.contraction("lstm", rows * weight.numel, weight)
        if isinstance(constant, Constant):
            found = products.channels(constant, *constant.tensor.shape, outputs_first=True)
            product = dataclasses.replace(product, channels=found)
        yield product
    directions = call.tensor(2).shape[0]
    yield elementwise.recurrent_cell("lstm", rows * directions, call.attributes["hidden_size"])


_RULES: Final[dict[str, Rule]] = {
    # Products.
    "FusedConv": fused_convolution,
    "QLinearConv": quantised_convolution,
    "FusedMatMul": matmul(),
    "TransposeMatMul": matmul(),
    "FusedMatMulActivation": activated(matmul()),
    "MatMulInteger16": matmul(),
    "MatMulIntegerToFloat": matmul(6),
    "DynamicQuantizeMatMul": matmul(4),
    "MatMulNBits": matmul(5),
    "MatMulBnb4": matmul(),
    "FusedGemm": activated(standard.gemm),
    "QGemm": quantised_gemm,
    "GemmFastGelu": lambda call: [*matmul(2)(call), *elementwise.per_output("gelu_tanh", call.out)],
    "Attention": projected_attention(2, 3, 4, 5),
    "QAttention": projected_attention(2, 5, 8, -1),
    "MultiHeadAttention": multi_head_attention,
    "GroupQueryAttention": grouped_attention,
    "DynamicQuantizeLSTM": dynamic_lstm,
    # Pooling and normalisation.
    "QLinearAveragePool": quantised_pool,
    "QLinearGlobalAveragePool": standard.global_average,
    "SkipLayerNormalization": skip_norm,
    "SkipSimplifiedLayerNormalization": skip_rms_norm,
    "EmbedLayerNormalization": embedded,
    "QLinearSoftmax": softmax,
    # Activations and arithmetic.
    "Gelu": each("gelu"),
    "BiasGelu": with_bias("gelu"),
    "FastGelu": with_bias("gelu_tanh"),
    "QuickGelu": each("silu"),
    "QLinearAdd": quantised("add"),
    "QLinearMul": quantised("mul"),
    "QLinearSigmoid": quantised("sigmoid"),
    "QLinearLeakyRelu": quantised("leaky_relu"),
    "QuantizeLinear": times("quantize", 3),
    "DequantizeLinear": times("quantize", 2),
}

CONTRIB_RULES: Final = {f"com.microsoft:{name}": rule for name, rule in _RULES.items()}
"""Operator -> what it costs."""

CONTRIB_FREE: Final = frozenset(
    f"com.microsoft:{name}"
    for name in ("BifurcationDetector", "ExpandDims", "GatherND", "Pad", "QLinearConcat",
                 "QLinearWhere", "Range", "RemovePadding", "RestorePadding", "Trilu", "Unique")
)  # fmt: skip
"""Operators that move, make or choose values, and calculate nothing."""
