"""The table of rules for the standard ONNX operators: what each costs, by inputs and attributes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import onnx

from st3fx.flops import elementwise, onnx_node, products
from st3fx.flops.einsum import einsum_products
from st3fx.flops.elementwise import LOCAL_RESPONSE, MOMENTS, each, reduce, softmax, times
from st3fx.flops.onnx_node import OnnxCall
from st3fx.flops.onnx_values import Values
from st3fx.flops.operand import Constant, Counted, Elementwise, Lookup, Operand, Product, Window


def pads_before(call: OnnxCall, kernel: Sequence[int], *, transposed: bool = False) -> list[int]:
    """Zeros before the input in each spatial dimension (transposed: outputs that are cut off).

    Args:
        call: A convolution or pooling.
        kernel: Its window.
        transposed: Whether it is a transposed convolution.
    """
    dims = len(kernel)
    rule = call.attributes.get("auto_pad", "NOTSET")
    if rule == "VALID":
        return [0] * dims
    shaped = transposed and call.attributes.get("output_shape")
    if rule == "NOTSET" and not shaped:
        return list(call.attributes.get("pads") or [0] * dims)[:dims]
    totals = _totals(call, kernel, transposed=transposed)
    # The smaller half comes first. With output_shape and without a rule it is the larger one.
    upper = rule == "SAME_UPPER"
    return [total // 2 if upper else total - total // 2 for total in totals]


def _totals(call: OnnxCall, kernel: Sequence[int], *, transposed: bool) -> list[int]:
    dims = len(kernel)
    sizes, outputs = call.x.shape[-dims:], call.out.shape[-dims:]
    strides, dilations = call.sizes("strides", dims), call.sizes("dilations", dims)
    extra = call.attributes.get("output_padding") or [0] * dims
    totals = []
    for d in range(dims):
        reach = (kernel[d] - 1) * dilations[d] + 1
        if transposed:
            total = strides[d] * (sizes[d] - 1) + extra[d] + reach - outputs[d]
        else:
            total = strides[d] * (outputs[d] - 1) + reach - sizes[d]
        totals.append(max(0, total))
    return totals


def real_window(node: onnx.NodeProto, x: Operand, values: Values) -> Window | None:
    """Where the result of a ``Pad`` has real values; ``None`` where it has no zeros of its own.

    Args:
        node: The ``Pad``.
        x: Its input.
        values: The constants of the graph.
    """
    attributes = onnx_node.attributes(node)
    if attributes.get("mode", "constant") != "constant":
        return None
    inputs = [*node.input, "", "", ""]
    filling = inputs[2]
    is_zero = not attributes.get("value", 0) and (
        not filling or (filling in values and not values.array(filling).any())
    )
    # Sizes before, then behind: an attribute, or, since opset 11, an input.
    pads = attributes.get("pads", attributes.get("paddings"))
    if pads is None and inputs[1] in values:
        pads = values.array(inputs[1])
    if pads is None or not is_zero:
        return None
    numbers = [int(number) for number in pads]
    half = len(numbers) // 2
    before, after = numbers[:half], numbers[half:]
    if inputs[3]:  # it chooses axes
        if inputs[3] not in values:
            return None
        axes = [int(axis) % len(x.shape) for axis in values.array(inputs[3])]
        rank = range(len(x.shape))
        before, after = (
            [pad[axes.index(axis)] if axis in axes else 0 for axis in rank]
            for pad in (before, after)
        )
    return products.padded(x, before, after)


Rule = Callable[[OnnxCall], Iterable[Counted]]


def convolution(weight: int, added: int | None, *, transposed: bool = False) -> Rule:
    """A convolution whose weight and bias are these inputs."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        kernel, groups = call.tensor(weight), call.attributes.get("group", 1)
        dims = len(kernel.shape) - 2
        read = kernel.shape[0] if transposed else kernel.shape[1] * groups
        if call.x.shape[1] != read:  # ONNX's own inference of shapes does not see it
            raise ValueError(f"{read} channels are read of {call.x.shape[1]}")
        yield products.convolution(
            call.x,
            kernel,
            call.out.shape,
            stride=call.sizes("strides", dims),
            padding=pads_before(call, kernel.shape[2:], transposed=transposed),
            dilation=call.sizes("dilations", dims),
            groups=groups,
            transposed=transposed,
        )
        if added is not None:
            yield from elementwise.bias(call.optional(added), call.out)

    return rule


def gemm(call: OnnxCall) -> Iterable[Counted]:
    """A product of two matrices, either of them transposed, and what is added to it."""
    left, right = call.tensor(0), call.tensor(1)
    if call.attributes.get("transA"):
        left = _transposed(left)
    if call.attributes.get("transB"):
        yield products.linear(left, right, "matmul" if right.constant is None else "linear")
    else:
        yield products.matrix_product("matmul", left, right)
    yield from elementwise.bias(call.optional(2), call.out)


def _transposed(matrix: Operand) -> Operand:
    constant = matrix.constant
    if constant is not None:
        constant = Constant(constant.tensor.t(), constant.weight, constant.itemsize)
    return dataclasses.replace(matrix, shape=matrix.shape[::-1], constant=constant)


def matmul(left: int, right: int) -> Rule:
    """The product of two inputs."""
    return lambda call: [products.matrix_product("matmul", call.tensor(left), call.tensor(right))]


def einsum(call: OnnxCall) -> Iterable[Counted]:
    """Products of two operands, from left to right."""
    operands = [operand for operand in call.inputs if operand is not None]
    return einsum_products(call.attributes["equation"], operands)


def attention(call: OnnxCall) -> Iterable[Counted]:
    """Both products, the scale, the softmax and what is added as a mask; in full if causal.

    Three dimensions are (batch, length, heads · E), four are (batch, heads, length, E).
    """
    query, key, value = (call.tensor(index) for index in range(3))
    past = call.optional(4)
    keys = key.shape[-2] + (past.shape[-2] if past is not None else 0)
    rows = math.prod(query.shape[:-1])
    size, size_of_value = query.shape[-1], value.shape[-1]
    if len(query.shape) == 3:
        heads, groups = call.attributes["q_num_heads"], call.attributes["kv_num_heads"]
        rows, size, size_of_value = rows * heads, size // heads, size_of_value // groups
    dense = rows * keys * (size + size_of_value)
    yield Product("attention", dense, dense, dense, dense)
    yield from elementwise.attention(rows * keys, call.optional(3))


def recurrent(kind: str) -> Rule:
    """A recurrent layer, in one or two directions."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        # X (steps, batch, inputs), W (directions, gates · hidden, inputs), R for the state.
        rows = math.prod(call.x.shape[:2])
        for weight in (call.tensor(1), call.tensor(2)):
            product = products.contraction(kind, rows * weight.numel, weight)
            if product.constant is not None:
                found = products.channels(product.constant, *weight.shape, outputs_first=True)
                product = dataclasses.replace(product, channels=found)
            yield product
        directions, _, hidden = call.tensor(2).shape
        yield elementwise.recurrent_cell(kind, rows * directions, hidden)

    return rule


def gather(call: OnnxCall) -> Iterable[Counted]:
    """Rows of a constant table by computed indices: an embedding."""
    constant, indices = call.x.constant, call.tensor(1)
    table = call.x.floating and len(call.x.shape) == 2 and not call.attributes.get("axis", 0)
    if constant is not None and indices.constant is None and table:
        yield Lookup(constant)


def pool(kind: elementwise.PoolKind) -> Rule:
    """The largest value, or the mean, of each window."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        kernel = call.attributes["kernel_shape"]
        yield elementwise.pooling(
            kind,
            call.x,
            call.out,
            kernel=kernel,
            stride=call.sizes("strides", len(kernel)),
            padding=pads_before(call, kernel),
            dilation=call.sizes("dilations", len(kernel)),
        )

    return rule


def global_average(call: OnnxCall) -> Iterable[Counted]:
    """The mean of each channel."""
    yield Elementwise("avg_pool", call.x.numel + call.out.numel, pooled=call.x.numel)


def global_max(call: OnnxCall) -> Iterable[Counted]:
    """The largest value of each channel."""
    yield Elementwise("max_pool", call.x.numel)


def resize(call: OnnxCall) -> Iterable[Counted]:
    """Interpolation: a weighted sum of 2 or 4 values in each dimension that changes."""
    changed = sum(a != b for a, b in zip(call.x.shape, call.out.shape, strict=True))
    mode = call.attributes.get("mode", "nearest")
    if mode != "nearest":
        name, base = ("cubic", 4) if mode == "cubic" else ("linear", 2)
        yield from elementwise.resampling(f"upsample_{name}", call.out, base**changed)


def norm(op: str) -> Rule:
    """Layer, group and instance norm; inputs 1 and 2 are their learned vectors."""
    return lambda call: elementwise.norm(op, call.x, call.optional(1), call.optional(2))


def rms_norm(call: OnnxCall) -> Iterable[Counted]:
    """RMS norm."""
    return elementwise.rms_norm(call.x, call.optional(1))


def local_response(call: OnnxCall) -> Iterable[Counted]:
    """Local response norm: a square and an addition for each neighbour."""
    cost = 2 * call.attributes["size"] + LOCAL_RESPONSE
    yield Elementwise("local_response_norm", cost * call.x.numel)


def clip(call: OnnxCall) -> Iterable[Counted]:
    """One comparison for each bound."""
    given = sum(call.optional(index) is not None for index in (1, 2))
    bounds = given or sum(name in call.attributes for name in ("min", "max"))
    return elementwise.clamp(call.out, bounds)


def mean(call: OnnxCall) -> Iterable[Counted]:
    """A mean over some dimensions."""
    return elementwise.mean(call.x, call.out, call.axes(1))


def variadic(op: str) -> Rule:
    """One operation for each input after the first."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        if call.out.floating:
            yield Elementwise(op, (len(call.inputs) - 1) * call.out.numel)

    return rule


_SAME_NAME = """
Add Sub Mul Div Neg Abs Sign Floor Ceil Round Sqrt Reciprocal Exp Log Erf Pow Sin Cos Tan Asin
Acos Atan Sinh Cosh Asinh Acosh Atanh Tanh Relu Sigmoid Softplus Softsign Elu Selu Celu Mish
"""
"""Operators whose name in the report is their own in small letters."""

RULES: Final[dict[str, Rule]] = {
    **{name: each(name.lower()) for name in _SAME_NAME.split()},
    # Products.
    "Conv": convolution(1, 2),
    "ConvTranspose": convolution(1, 2, transposed=True),
    "ConvInteger": convolution(1, None),
    "QLinearConv": convolution(3, 8),
    "Gemm": gemm,
    "MatMul": matmul(0, 1),
    "MatMulInteger": matmul(0, 1),
    "QLinearMatMul": matmul(0, 3),
    "Einsum": einsum,
    "Attention": attention,
    "LSTM": recurrent("lstm"),
    "GRU": recurrent("gru"),
    "RNN": recurrent("rnn"),
    "Gather": gather,
    # Pooling and resampling.
    "MaxPool": pool("max_pool"),
    "AveragePool": pool("avg_pool"),
    "GlobalAveragePool": global_average,
    "GlobalMaxPool": global_max,
    "Resize": resize,
    "Upsample": resize,
    # Normalisation.
    "BatchNormalization": lambda call: elementwise.batch_norm(call.x),
    "LayerNormalization": norm("layer_norm"),
    "GroupNormalization": norm("group_norm"),
    "InstanceNormalization": norm("batch_norm"),
    "MeanVarianceNormalization": times("batch_norm", MOMENTS),
    "RMSNormalization": rms_norm,
    "LpNormalization": times("norm", 3),
    "LRN": local_response,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    # Activations and arithmetic that have other names here.
    "Gelu": lambda call: elementwise.gelu(call.out, call.attributes.get("approximate")),
    "Clip": clip,
    "LeakyRelu": each("leaky_relu"),
    "PRelu": each("leaky_relu"),
    "ThresholdedRelu": each("threshold"),
    "Shrink": each("softshrink"),
    "HardSigmoid": each("hardsigmoid"),
    "HardSwish": each("hardswish"),
    "Swish": each("silu"),
    "Mod": each("remainder"),
    "Min": variadic("minimum"),
    "Max": variadic("maximum"),
    "Sum": variadic("add"),
    "Mean": variadic("add"),
    "ReduceMean": mean,
    "ReduceSum": reduce("sum"),
    "ReduceProd": reduce("prod"),
    "ReduceMax": reduce("max"),
    "ReduceMin": reduce("min"),
    "ReduceL1": reduce("norm"),
    "ReduceL2": reduce("norm"),
    "ReduceSumSquare": reduce("norm"),
    "ReduceLogSumExp": reduce("logsumexp"),
    "ArgMax": reduce("argmax"),
    "ArgMin": reduce("argmin"),
    "CumSum": reduce("cumsum"),
    "Col2Im": reduce("col2im"),
    "QuantizeLinear": times("quantize", 3),  # quotient, rounding, shift
    "DequantizeLinear": times("quantize", 2),
    "DynamicQuantizeLinear": times("quantize", 5),  # and the extremes
    "SimplifiedLayerNormalization": rms_norm,  # ONNX Runtime's, in ONNX's domain
}
"""Operator -> what it costs."""

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

FREE: Final = frozenset((_MOVING + _MAKING + _CHOOSING).split())
"""Operators that move, make, choose or compare values, and calculate nothing."""
