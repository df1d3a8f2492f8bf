"""What ONNX operators cost, from their inputs and attributes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from st3fx.flops import products, shared
from st3fx.flops.counted import Counted, Elementwise, Lookup, Product
from st3fx.flops.einsum import einsum as einsum_products
from st3fx.flops.elementwise import BATCH_NORM, LOCAL_RESPONSE, RMS_NORM, SOFTMAX, normalisation
from st3fx.flops.onnx_call import OnnxCall
from st3fx.flops.onnx_padding import pads_before
from st3fx.flops.operand import Constant, Operand

Rule = Callable[[OnnxCall], Iterable[Counted]]


def convolution(weight: int, added: int | None, *, transposed: bool = False) -> Rule:
    """A convolution whose weight and bias are these inputs."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        kernel = call.tensor(weight)
        dims = len(kernel.shape) - 2
        yield products.convolution(
            call.x,
            kernel,
            call.out.shape,
            stride=call.sizes("strides", dims),
            padding=pads_before(call, kernel.shape[2:], transposed=transposed),
            dilation=call.sizes("dilations", dims),
            groups=call.attributes.get("group", 1),
            transposed=transposed,
        )
        if added is not None:
            yield from shared.bias(call.optional(added), call.out)

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
    yield from shared.bias(call.optional(2), call.out)


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
    yield Elementwise("softmax", (SOFTMAX + 1) * rows * keys)
    if call.optional(3) is not None:
        yield Elementwise("add", rows * keys)


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
        yield shared.recurrent_cell(kind, rows * directions, hidden)

    return rule


def gather(call: OnnxCall) -> Iterable[Counted]:
    """Rows of a constant table by computed indices: an embedding."""
    constant, indices = call.x.constant, call.tensor(1)
    table = call.x.floating and len(call.x.shape) == 2 and not call.attributes.get("axis", 0)
    if constant is not None and indices.constant is None and table:
        yield Lookup(constant)


def pool(kind: shared.PoolKind) -> Rule:
    """The largest value, or the mean, of each window."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        kernel = call.attributes["kernel_shape"]
        yield shared.pooling(
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
        yield from shared.resampling(f"upsample_{name}", call.out, base**changed)


def batch_norm(call: OnnxCall) -> Iterable[Counted]:
    """With fixed statistics."""
    yield Elementwise("batch_norm", BATCH_NORM * call.x.numel)


def norm(op: str) -> Rule:
    """Layer, group and instance norm; inputs 1 and 2 are their learned vectors."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        affine = sum(call.optional(index) is not None for index in (1, 2))
        yield Elementwise(op, normalisation(call.x.numel, affine))

    return rule


def rms_norm(call: OnnxCall) -> Iterable[Counted]:
    """RMS norm."""
    affine = int(call.optional(1) is not None)
    yield Elementwise("rms_norm", (RMS_NORM + affine) * call.x.numel)


def local_response(call: OnnxCall) -> Iterable[Counted]:
    """Local response norm: a square and an addition for each neighbour."""
    cost = 2 * call.attributes["size"] + LOCAL_RESPONSE
    yield Elementwise("local_response_norm", cost * call.x.numel)


def softmax(call: OnnxCall) -> Iterable[Counted]:
    """Softmax and its logarithm."""
    yield Elementwise("softmax", SOFTMAX * call.out.numel)


def gelu(call: OnnxCall) -> Iterable[Counted]:
    """GELU in either form."""
    tanh = call.attributes.get("approximate") == "tanh"
    return shared.per_output("gelu_tanh" if tanh else "gelu", call.out)


def clip(call: OnnxCall) -> Iterable[Counted]:
    """One comparison for each bound."""
    given = sum(call.optional(index) is not None for index in (1, 2))
    bounds = given or sum(name in call.attributes for name in ("min", "max"))
    return [Elementwise("clamp", bounds * call.out.numel)] if call.out.floating else []


def mean(call: OnnxCall) -> Iterable[Counted]:
    """A mean over some dimensions."""
    return shared.mean(call.x, call.out, call.axes(1))


def variadic(op: str) -> Rule:
    """One operation for each input after the first."""

    def rule(call: OnnxCall) -> Iterable[Counted]:
        if call.out.floating:
            yield Elementwise(op, (len(call.inputs) - 1) * call.out.numel)

    return rule


def times(op: str, count: int) -> Rule:
    """This many operations for each output."""
    return lambda call: [Elementwise(op, count * call.out.numel)]


def each(op: str) -> Rule:
    """As many operations for each output as the table says."""
    return lambda call: shared.per_output(op, call.out)


def reduce(op: str) -> Rule:
    """As many operations for each input as the table says."""
    return lambda call: shared.per_input(op, call.x)
