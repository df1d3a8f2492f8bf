"""The table of rules for the standard ONNX operators.

The table of rules for ONNX Runtime's own operators: ``com.microsoft``.

They are written by its quantisers and by its optimiser. Formats: ``ContribOperators.md`` there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final

from st3fx.flops import elementwise, products
from st3fx.flops import onnx_costs as costs
from st3fx.flops.elementwise import MOMENTS, PER_OUTPUT, RMS_NORM, SOFTMAX, normalisation
from st3fx.flops.onnx_costs import Rule
from st3fx.flops.onnx_node import OnnxCall
from st3fx.flops.operand import Constant, Counted, Elementwise, Lookup, Operand, Product

_ACTIVATIONS: Final = {"Relu": "relu", "LeakyRelu": "leaky_relu", "Clip": "clamp", "Tanh": "tanh",
                       "Sigmoid": "sigmoid", "HardSigmoid": "hardsigmoid",
                       "HardSwish": "hardswish", "Gelu": "gelu", "FastGelu": "gelu_tanh",
                       "Elu": "elu", "Softmax": "softmax"}  # fmt: skip


def _activation(call: OnnxCall) -> Iterable[Counted]:
    kind = call.attributes.get("activation")
    name = _ACTIVATIONS.get(kind or "", "")
    if name == "softmax":
        yield Elementwise("softmax", SOFTMAX * call.out.numel)
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
    yield from costs.convolution(1, 2)(call)
    yield from elementwise.bias(call.optional(3), call.out)
    yield from _activation(call)


def quantised_convolution(call: OnnxCall) -> Iterable[Counted]:
    """A quantised convolution whose images may have their channels last."""
    if call.attributes.get("channels_last"):
        x, out = call.x, call.out
        inputs = (_channels_first(x), *call.inputs[1:])
        call = dataclasses.replace(call, inputs=inputs, outputs=(_channels_first(out),))
    return costs.convolution(3, 8)(call)


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
    yield from costs.gemm(dataclasses.replace(call, inputs=inputs))


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
        yield from _attention(call.attributes["num_heads"], batch, length, keys, sizes[0], sizes[2])
        for index in (mask, added):
            if index >= 0 and call.optional(index) is not None:
                scores = call.attributes["num_heads"] * batch * length * keys
                yield Elementwise("add", scores)

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
    yield from _attention(heads, batch, length, keys, size, value.shape[2])
    if call.optional(3) is not None:
        yield Elementwise("add", query.numel + key.numel + value.numel)
    for index in (4, 5):
        if call.optional(index) is not None:
            yield Elementwise("add", heads * batch * length * keys)


def _packed_attention(query: Operand, key: Operand | None, heads: int) -> Iterable[Counted]:
    batch, length = query.shape[:2]
    keys = length if key is None else key.shape[-2] if len(key.shape) == 4 else key.shape[1]
    size = query.shape[-1] * (heads if len(query.shape) > 3 else 1)
    yield from _attention(heads, batch, length, keys, size, size)


def _attention(
    heads: int, batch: int, length: int, keys: int, size: int, size_of_value: int
) -> Iterable[Counted]:
    dense = batch * length * keys * (size + size_of_value)
    yield Product("attention", dense, dense, dense, dense)
    yield Elementwise("softmax", (SOFTMAX + 1) * heads * batch * length * keys)


def grouped_attention(call: OnnxCall) -> Iterable[Counted]:
    """Attention whose heads share keys and values; the present keys say how many there are."""
    query, present = call.x, call.outputs[1]
    heads, groups = call.attributes["num_heads"], call.attributes["kv_num_heads"]
    batch, length, width = query.shape
    size = width // heads if call.optional(1) is not None else width // (heads + 2 * groups)
    keys = present.shape[2] if present is not None else length
    yield from _attention(heads, batch, length, keys, size * heads, size * heads)


def skip_norm(op: str, *, rms: bool) -> Rule:
    """A sum, perhaps a bias, and the norm of it."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        yield Elementwise("add", call.x.numel)
        yield from elementwise.bias(call.optional(3 if rms else 4), call.x)
        if rms:
            yield Elementwise(op, (RMS_NORM + 1) * call.x.numel)
        else:
            affine = sum(call.optional(index) is not None for index in (2, 3))
            yield Elementwise(op, normalisation(call.x.numel, affine))

    return rule


def with_bias(op: str) -> Rule:
    """A function of a sum with a bias that may be left out."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        yield from elementwise.bias(call.optional(1), call.out)
        yield from elementwise.per_output(op, call.out)

    return rule


def quantised(op: str) -> Rule:
    """A function of each value, which is a quantised one."""
    return costs.times(op, PER_OUTPUT[op])


def quantised_pool(call: OnnxCall) -> Iterable[Counted]:
    """An average pooling of quantised images."""
    if call.attributes.get("channels_last"):
        inputs, outputs = (_channels_first(call.x),), (_channels_first(call.out),)
        call = dataclasses.replace(call, inputs=inputs, outputs=outputs)
    return costs.pool("avg_pool")(call)


def quantised_softmax(call: OnnxCall) -> Iterable[Counted]:
    """Softmax of quantised values."""
    yield Elementwise("softmax", SOFTMAX * call.out.numel)


def embedded(call: OnnxCall) -> Iterable[Counted]:
    """The sum of two or three embeddings and its layer norm."""
    tables = [table for index in (2, 3, 4) if (table := call.optional(index)) is not None]
    yield from (Lookup(table.constant) for table in tables if table.constant is not None)
    yield Elementwise("add", (len(tables) - 1) * call.out.numel)
    yield Elementwise("layer_norm", normalisation(call.out.numel, 2))


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


CONTRIB_RULES: Final[dict[str, Rule]] = {
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
    "FusedGemm": activated(costs.gemm),
    "QGemm": quantised_gemm,
    "GemmFastGelu": lambda call: [*matmul(2)(call), *elementwise.per_output("gelu_tanh", call.out)],
    "Attention": projected_attention(2, 3, 4, 5),
    "QAttention": projected_attention(2, 5, 8, -1),
    "MultiHeadAttention": multi_head_attention,
    "GroupQueryAttention": grouped_attention,
    "DynamicQuantizeLSTM": dynamic_lstm,
    # Pooling and normalisation.
    "QLinearAveragePool": quantised_pool,
    "QLinearGlobalAveragePool": costs.global_average,
    "SkipLayerNormalization": skip_norm("layer_norm", rms=False),
    "SkipSimplifiedLayerNormalization": skip_norm("rms_norm", rms=True),
    "EmbedLayerNormalization": embedded,
    "QLinearSoftmax": quantised_softmax,
    # Activations and arithmetic.
    "Gelu": costs.each("gelu"),
    "BiasGelu": with_bias("gelu"),
    "FastGelu": with_bias("gelu_tanh"),
    "QuickGelu": costs.each("silu"),
    "QLinearAdd": quantised("add"),
    "QLinearMul": quantised("mul"),
    "QLinearSigmoid": quantised("sigmoid"),
    "QLinearLeakyRelu": quantised("leaky_relu"),
    "QuantizeLinear": costs.times("quantize", 3),
    "DequantizeLinear": costs.times("quantize", 2),
}
"""Operator of ``com.microsoft`` -> what it costs. What is in no table is named in the report."""

CONTRIB_FREE: Final = frozenset(
    ("BifurcationDetector", "ExpandDims", "GatherND", "Pad", "QLinearConcat", "QLinearWhere",
     "Range", "RemovePadding", "RestorePadding", "Trilu", "Unique")
)  # fmt: skip
"""Operators that move, make or choose values, and calculate nothing."""


_SAME_NAME = """
Add Sub Mul Div Neg Abs Sign Floor Ceil Round Sqrt Reciprocal Exp Log Erf Pow Sin Cos Tan Asin
Acos Atan Sinh Cosh Asinh Acosh Atanh Tanh Relu Sigmoid Softplus Softsign Elu Selu Celu Mish
"""
"""Operators whose name in the report is their own in small letters."""

RULES: Final[dict[str, Rule]] = {
    **{name: costs.each(name.lower()) for name in _SAME_NAME.split()},
    # Products.
    "Conv": costs.convolution(1, 2),
    "ConvTranspose": costs.convolution(1, 2, transposed=True),
    "ConvInteger": costs.convolution(1, None),
    "QLinearConv": costs.convolution(3, 8),
    "Gemm": costs.gemm,
    "MatMul": costs.matmul(0, 1),
    "MatMulInteger": costs.matmul(0, 1),
    "QLinearMatMul": costs.matmul(0, 3),
    "Einsum": costs.einsum,
    "Attention": costs.attention,
    "LSTM": costs.recurrent("lstm"),
    "GRU": costs.recurrent("gru"),
    "RNN": costs.recurrent("rnn"),
    "Gather": costs.gather,
    # Pooling and resampling.
    "MaxPool": costs.pool("max_pool"),
    "AveragePool": costs.pool("avg_pool"),
    "GlobalAveragePool": costs.global_average,
    "GlobalMaxPool": costs.global_max,
    "Resize": costs.resize,
    "Upsample": costs.resize,
    # Normalisation.
    "BatchNormalization": costs.batch_norm,
    "LayerNormalization": costs.norm("layer_norm"),
    "GroupNormalization": costs.norm("group_norm"),
    "InstanceNormalization": costs.norm("batch_norm"),
    "MeanVarianceNormalization": costs.times("batch_norm", MOMENTS),
    "RMSNormalization": costs.rms_norm,
    "LpNormalization": costs.times("norm", 3),
    "LRN": costs.local_response,
    "Softmax": costs.softmax,
    "LogSoftmax": costs.softmax,
    # Activations and arithmetic that have other names here.
    "Gelu": costs.gelu,
    "Clip": costs.clip,
    "LeakyRelu": costs.each("leaky_relu"),
    "PRelu": costs.each("leaky_relu"),
    "ThresholdedRelu": costs.each("threshold"),
    "Shrink": costs.each("softshrink"),
    "HardSigmoid": costs.each("hardsigmoid"),
    "HardSwish": costs.each("hardswish"),
    "Swish": costs.each("silu"),
    "Mod": costs.each("remainder"),
    "Min": costs.variadic("minimum"),
    "Max": costs.variadic("maximum"),
    "Sum": costs.variadic("add"),
    "Mean": costs.variadic("add"),
    "ReduceMean": costs.mean,
    "ReduceSum": costs.reduce("sum"),
    "ReduceProd": costs.reduce("prod"),
    "ReduceMax": costs.reduce("max"),
    "ReduceMin": costs.reduce("min"),
    "ReduceL1": costs.reduce("norm"),
    "ReduceL2": costs.reduce("norm"),
    "ReduceSumSquare": costs.reduce("norm"),
    "ReduceLogSumExp": costs.reduce("logsumexp"),
    "ArgMax": costs.reduce("argmax"),
    "ArgMin": costs.reduce("argmin"),
    "CumSum": costs.reduce("cumsum"),
    "Col2Im": costs.reduce("col2im"),
    "QuantizeLinear": costs.times("quantize", 3),  # quotient, rounding, shift
    "DequantizeLinear": costs.times("quantize", 2),
    "DynamicQuantizeLinear": costs.times("quantize", 5),  # and the extremes
    "SimplifiedLayerNormalization": costs.rms_norm,  # ONNX Runtime's, in ONNX's domain
    **{f"com.microsoft:{name}": rule for name, rule in CONTRIB_RULES.items()},
}
"""Operator -> what it costs. What is in no table is named in the report."""

_MOVING = """
BitCast Cast CastLike Compress Concat ConcatFromSequence DepthToSpace Dropout Expand Flatten
GatherElements GatherND Identity Pad Reshape ReverseSequence Scatter ScatterElements ScatterND
SequenceAt SequenceConstruct SequenceEmpty SequenceInsert Slice SpaceToDepth Split
SplitToSequence Squeeze TensorScatter Tile Transpose Trilu Unsqueeze
"""
"""Copies, layouts, conversions."""

_MAKING = """
Constant ConstantOfShape EyeLike OneHot RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Shape Size
"""
"""Fresh tensors."""

_CHOOSING = """
And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsInf IsNaN Less
LessOrEqual NonMaxSuppression NonZero Not Or TopK Unique Where Xor
"""
"""Choosing and comparing."""

FREE: Final = frozenset(
    [*(_MOVING + _MAKING + _CHOOSING).split(), *(f"com.microsoft:{x}" for x in CONTRIB_FREE)]
)
"""Operators that move, make, choose or compare values, and calculate nothing."""
