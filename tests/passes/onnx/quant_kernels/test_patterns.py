"""What becomes which of our operators, and computes what the QDQ graph does within one step."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from st3fx.passes.onnx.plain_operators import plain_proto
from st3fx.passes.onnx.quant_kernels.lower import lower_quantized
from tests.passes.onnx.quant_kernels.agreement import OURS_WIN, agree, lowered, run
from tests.passes.onnx.quant_kernels.nets import Net

Build = Callable[[Net], str]


def _name(case: object) -> str:
    return getattr(case, "__name__", "")


IMAGES = ("N", 8, 9, 11)

SMALL = 63
"""Weights with which ONNX Runtime's own integer kernels saturate on no CPU: 2 · 255 · 63 < 2¹⁵."""


def plain_conv(net: Net) -> str:
    return net.q(net.conv(net.q("x"), 12, 8, 3), 0.05, 100)


def relu(net: Net) -> str:
    return net.q(net.op("Relu", net.conv(net.q("x"), 12, 8)), 0.02, 30)


def clip(net: Net) -> str:
    limits = net.hold(np.float32(-0.4)), net.hold(np.float32(1.1))
    return net.q(net.op("Clip", net.conv(net.q("x"), 12, 8), *limits), 0.02, 60)


def depthwise(net: Net) -> str:
    return net.q(net.conv(net.q("x"), 8, 8, 3, group=8, strides=[2, 2]), 0.01, 90)


def groups(net: Net) -> str:
    return net.q(net.conv(net.q("x"), 10, 8, 3, group=2), 0.02, 90)


def narrow_groups(net: Net) -> str:
    return net.q(net.conv(net.q("x"), 12, 8, 3, group=4), 0.02, 90)


def signed(net: Net) -> str:
    return net.q(net.conv(net.q("x", zero=-8, kind=np.int8), 12, 8, 3), 0.05, -20, np.int8)


def residual(net: Net) -> str:
    first = net.q(net.op("Relu", net.conv(net.q("x"), 8, 8)), 0.03, 0)
    second = net.q(net.conv(first, 8, 8, 3), 0.035, 110)
    return net.q(net.op("Relu", net.op("Add", second, first)), 0.04, 0)


def two_branches(net: Net) -> str:
    start = net.q("x")
    pair = [net.q(net.conv(start, 8, 8), 0.03, 110), net.q(net.conv(start, 8, 8, 3), 0.035, 120)]
    return net.q(net.op("Add", *pair), 0.05, 100)


def sum_of_read(net: Net) -> str:
    one = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("Add", net.q(net.op("Sigmoid", one), 0.004, 0), one), 0.03, 100)


def max_pool(net: Net) -> str:
    inner = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    about = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return net.q(net.op("MaxPool", inner, **about), 0.03, 110)


def max_pool_rescaled(net: Net) -> str:
    inner = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("Relu", net.op("MaxPool", inner, kernel_shape=[2, 2])), 0.02, 10)


def max_pool_other_scale(net: Net) -> str:
    inner = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("MaxPool", inner, kernel_shape=[2, 2]), 0.02, 40)


def average_pool(net: Net) -> str:
    inner = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    about = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    return net.q(net.op("AveragePool", inner, **about), 0.02, 100)


def squeeze_and_excite(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    mean = net.q(net.op("GlobalAveragePool", start), 0.01, 100)
    gate = net.q(net.conv(mean, 8, 8), 0.02, 120)
    gate = net.q(net.op("Sigmoid", gate), 1 / 256, 0)
    return net.q(net.op("Mul", gate, start), 0.02, 110)


def silu(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("Mul", start, net.q(net.op("Sigmoid", start), 1 / 256, 0)), 0.02, 20)


def hard_swish(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("HardSwish", start), 0.02, 20)


def other_scale(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(start, 0.011, 77)


def concat(net: Net) -> str:
    start = net.q("x")
    parts = [net.q(net.conv(start, 5, 8), 0.03, 110), net.q(net.conv(start, 6, 8), 0.02, 120)]
    return net.q(net.op("Concat", *parts, start, axis=1), 0.03, 110)


def split(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    sizes = net.hold(np.array([3, 5]))
    first, second = net.ops(2, "Split", start, sizes, axis=1)
    tail = net.q(second, 0.02, 115)
    return net.q(net.op("Concat", tail, net.q(first, 0.03, 110), axis=1), 0.03, 110)


def shuffle(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    for shape, order in (([-1, 2, 4, 9, 11], [0, 2, 1, 3, 4]), ([-1, 8, 9, 11], None)):
        start = net.q(net.op("Reshape", start, net.hold(np.array(shape))), 0.03, 110)
        if order:
            start = net.q(net.op("Transpose", start, perm=order), 0.03, 110)
    return start


def batch_norm(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    spread = net.generator.uniform(-1.5, 1.5, 8)
    spread[3] = 0  # a channel that is constant
    parts = net.hold(spread.astype(np.float32)), net.floats(8), net.floats(8)
    variance = net.hold(net.generator.uniform(0.5, 2, 8).astype(np.float32))
    norm = net.op("BatchNormalization", start, *parts, variance)
    return net.q(net.op("Relu", norm), 0.02, 10)


CASES: list[tuple[Build, dict[str, int]]] = [
    (plain_conv, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (relu, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (clip, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (depthwise, {"QuantizeImage": 1, "QuantDepthwiseConv": 1, "DequantizeImage": 1}),
    (groups, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (narrow_groups, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (signed, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
    (residual, {"QuantizeImage": 1, "QuantConv": 2, "DequantizeImage": 1}),
    (two_branches, {"QuantizeImage": 1, "QuantConv": 2, "DequantizeImage": 1}),
    (sum_of_read, {"QuantizeImage": 1, "QuantConv": 1, "QuantLookup": 1, "DequantizeImage": 1}),
    (max_pool, {"QuantizeImage": 1, "QuantConv": 1, "QuantMaxPool": 1, "DequantizeImage": 1}),
    (max_pool_rescaled, {"QuantizeImage": 1, "QuantConv": 1, "QuantMaxPool": 1, "QuantLookup": 1,
                         "DequantizeImage": 1}),
    (max_pool_other_scale, {"QuantizeImage": 1, "QuantConv": 1, "QuantMaxPool": 1,
                            "QuantLookup": 1, "DequantizeImage": 1}),
    (average_pool, {"QuantizeImage": 1, "QuantConv": 1, "QuantAveragePool": 1,
                    "DequantizeImage": 1}),
    (squeeze_and_excite, {"QuantizeImage": 1, "QuantConv": 2, "QuantGlobalAveragePool": 1,
                          "QuantLookup": 1, "QuantScale": 1, "DequantizeImage": 1}),
    (batch_norm, {"QuantizeImage": 1, "QuantConv": 1, "QuantDepthwiseConv": 1,
                  "DequantizeImage": 1}),
    (silu, {"QuantizeImage": 1, "QuantConv": 1, "QuantLookup": 1, "DequantizeImage": 1}),
    (hard_swish, {"QuantizeImage": 1, "QuantConv": 1, "QuantLookup": 1, "DequantizeImage": 1}),
    (other_scale, {"QuantizeImage": 1, "QuantConv": 1, "QuantLookup": 1, "DequantizeImage": 1}),
    (concat, {"QuantizeImage": 1, "QuantConv": 2, "QuantChannels": 1, "DequantizeImage": 1}),
    (split, {"QuantizeImage": 1, "QuantConv": 1, "QuantChannels": 3, "DequantizeImage": 1}),
    (shuffle, {"QuantizeImage": 1, "QuantConv": 1, "QuantChannels": 1, "DequantizeImage": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("build", "operators"), CASES, ids=_name)
@pytest.mark.parametrize("free", [False, True], ids=["sizes", "free"])
def test_images(build: Build, operators: dict[str, int], free: bool) -> None:
    """Each case, with sizes of images that are known and, where the file leaves them so, free."""
    if free and build is shuffle:
        pytest.skip("its file has the sizes in it")
    net = Net("N", 8, "H", "W") if free else Net(*IMAGES)
    model = net.model(build(net))
    net.shape = IMAGES
    result = agree(model, net.feeds())
    assert result.report.operators == operators
    assert all(np.ptp(value) > 0 for value in result.outputs)
    declared = {value.name: value for value in result.model.graph.value_info}
    blocked = [n for n in result.model.graph.node if n.op_type.startswith("QuantC")]
    for node in [] if free else blocked:
        sizes = declared[node.output[0]].type.tensor_type.shape.dim
        assert all(dim.dim_value for dim in sizes[1:])


def gemm(net: Net) -> str:
    return net.op("Gemm", net.q("x"), net.weight(10, 21), net.floats(10), transB=1)


def gemm_upright(net: Net) -> str:
    return net.op("Gemm", net.q("x"), net.weight(21, 10, axis=1), net.floats(10))


def matmul(net: Net) -> str:
    product = net.op("MatMul", net.q("x"), net.weight(21, 10, axis=1))
    return net.op("Relu", net.op("Add", net.floats(10), product))


def transposed(net: Net) -> str:
    weight = net.op("Transpose", net.weight(10, 21), perm=[1, 0])
    return net.op("MatMul", net.q("x"), weight)


def flattened(net: Net) -> str:
    """The bytes are in front of what only moves them, as NNCF writes it."""
    return net.op("MatMul", net.op("Flatten", net.q("x")), net.weight(21, 10, axis=1))


def one_scale(net: Net) -> str:
    return net.op("MatMul", net.q("x"), net.weight(21, 10, axis=1, per_channel=False))


def dynamic(net: Net) -> str:
    whole = net.integers(21, 10, axis=1, limit=SMALL)
    bytes_, scale, zero = net.ops(3, "DynamicQuantizeLinear", "x")
    held = net.hold(whole), net.hold(np.int8(0))
    sums = net.op("MatMulInteger", bytes_, held[0], zero, held[1])
    factor = net.op("Mul", scale, net.hold(np.float32(2e-3)))
    return net.op("Add", net.op("Mul", net.op("Cast", sums, to=1), factor), net.floats(10))


def _held_weight(net: Net, *, per_channel: bool = True) -> tuple[str, str, str]:
    """int8 ``[21, 10]``, scale and zero point, as ``com.microsoft`` has them beside each other."""
    size = 10 if per_channel else None
    scale = np.asarray(net.generator.uniform(1e-3, 3e-3, size), np.float32)
    zero = net.hold(np.zeros(scale.shape, np.int8))
    return net.hold(net.integers(21, 10, axis=1, limit=SMALL)), net.hold(scale), zero


MICROSOFT = "com.microsoft"


def packed_gemm(net: Net) -> str:
    bytes_, about = net.bytes("x")
    weight = _held_weight(net)
    offsets = net.hold(net.generator.integers(-900, 900, 10).astype(np.int32))
    return net.op("QGemm", bytes_, *about, *weight, offsets, domain=MICROSOFT)


def packed_product(net: Net) -> str:
    bytes_, about = net.bytes("x")
    weight, scale, zero = _held_weight(net)
    given = (bytes_, weight, about[0], scale, about[1], zero, net.floats(10))
    return net.op("MatMulIntegerToFloat", *given, domain=MICROSOFT)


def packed_dynamic(net: Net) -> str:
    return net.op("DynamicQuantizeMatMul", "x", *_held_weight(net), net.floats(10),
                  domain=MICROSOFT)  # fmt: skip


def packed_behind_dynamic(net: Net) -> str:
    bytes_, x_scale, x_zero = net.ops(3, "DynamicQuantizeLinear", "x")
    weight, scale, zero = _held_weight(net, per_channel=False)
    given = (bytes_, weight, x_scale, scale, x_zero, zero)
    return net.op("MatMulIntegerToFloat", *given, domain=MICROSOFT)


@pytest.mark.parametrize(
    "build", [flattened, gemm, gemm_upright, matmul, transposed, one_scale, dynamic, packed_gemm,
              packed_product, packed_dynamic, packed_behind_dynamic],
    ids=lambda build: build.__name__,
)  # fmt: skip
def test_products_read_and_give_floats(build: Build) -> None:
    net = Net("N", 21)
    result = agree(net.model(build(net)), net.feeds(5))
    assert result.report.operators == {"QuantLinear": 1}
    (again,) = run(plain_proto(result.model), net.feeds(5), optimised=False)
    assert again.shape == result.outputs[0].shape
    (wanted,), (value,) = result.plain, result.outputs
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    left = {node.op_type for node in result.model.graph.node}
    assert not left & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def test_a_product_that_gives_bytes_is_ours_between_floats() -> None:
    net = Net("N", 21)
    bytes_, about = net.bytes("x")
    after = net.hold(np.float32(0.05)), net.hold(np.uint8(99))
    whole = net.op("QGemm", bytes_, *about, *_held_weight(net), "", *after, domain=MICROSOFT)
    model = net.model(net.op("DequantizeLinear", whole, *after))
    found = agree(model, net.feeds(5))
    assert found.report.operators == {"QuantLinear": 1}
    assert np.abs(found.outputs[0] - found.plain[0]).max() < 0.051


def test_packed_layers_that_stay_have_a_row() -> None:
    net = Net("N", 21)
    bytes_, x_scale, x_zero = net.ops(3, "DynamicQuantizeLinear", "x")
    whole = net.op("QGemm", bytes_, x_scale, x_zero, *_held_weight(net), domain=MICROSOFT)
    (row,) = lower_quantized(net.model(whole), OURS_WIN).report.rows
    assert (row.op, row.shape, row.is_ours) == ("QGemm", (21, 10), False)
    assert "computed" in row.reason


def test_a_number_of_more_dimensions_is_in_no_table() -> None:
    """It gives the result one more."""
    for rank, tables in ((4, 1), (5, 0)):
        net = Net(*IMAGES)
        one = net.hold(np.full([1] * rank, 0.5, np.float32))
        value = net.q(net.conv(net.q("x"), 8, 8))
        found = agree(net.model(net.q(net.op("Add", value, one))), net.feeds())
        assert found.report.operators.get("QuantLookup", 0) == tables
        assert found.outputs[0].shape == found.plain[0].shape


def test_moves_of_large_images_are_followed_on_small_ones() -> None:
    """Concatenated, 0.5 GB of images in float32: to follow them takes no such memory."""
    net = Net(1, 8, 2048, 2048)
    values = [net.q(net.conv(net.q("x"), 16, 8)) for _ in range(2)]
    model = net.model(net.q(net.op("Concat", *values, axis=1)))
    lower_quantized(model, OURS_WIN)  # modules are loaded
    tracemalloc.start()
    try:
        operators = lower_quantized(model, OURS_WIN).report.operators
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert operators["QuantChannels"] == 1
    assert peak < 16 << 20


def test_a_classifier_has_one_way_out_of_bytes() -> None:
    net = Net(*IMAGES)
    inner = net.q(net.op("Relu", net.conv(net.q("x"), 12, 8, 3)), 0.02, 0)
    mean = net.op("ReduceMean", inner, net.hold(np.array([2, 3])), keepdims=1)
    flat = net.q(net.op("Reshape", mean, net.hold(np.array([-1, 12]))), 0.01, 0)
    result = agree(
        net.model(net.op("Gemm", flat, net.weight(5, 12), net.floats(5), transB=1)), net.feeds()
    )
    assert result.report.operators == {
        "QuantizeImage": 1, "QuantConv": 1, "QuantGlobalAveragePool": 1, "DequantizeImage": 1,
        "QuantLinear": 1,
    }  # fmt: skip
    assert [n.op_type for n in result.model.graph.node if not n.domain] == ["Flatten"]


def integer_conv(net: Net) -> str:
    """As SparseML writes it."""
    bytes_, about = net.bytes("x")
    whole = net.hold(net.integers(6, 8, 3, 3, limit=SMALL))
    sums = net.op("ConvInteger", bytes_, whole, about[1], net.hold(np.int8(0)), pads=[1, 1, 1, 1])
    offsets = net.generator.integers(-900, 900, (1, 6, 1, 1)).astype(np.int32)
    sums = net.op("Add", sums, net.hold(offsets))
    scale = net.hold(np.float32(0.03 * 2e-3))
    return net.q(net.op("Relu", net.op("Mul", net.op("Cast", sums, to=1), scale)), 0.02, 0)


def integer_product(net: Net) -> str:
    """As SparseML writes a linear layer, with the bias among the integers."""
    bytes_, about = net.bytes("x")
    whole = net.hold(net.integers(11, 10, axis=1, limit=SMALL))
    sums = net.op("MatMulInteger", bytes_, whole, about[1], net.hold(np.int8(0)))
    sums = net.op("Add", sums, net.hold(net.generator.integers(-900, 900, 10).astype(np.int32)))
    scale = net.hold((0.03 * net.generator.uniform(1e-3, 3e-3, 10)).astype(np.float32))
    return net.op("Mul", net.op("Cast", sums, to=1), scale)


def qlinear_conv(net: Net) -> str:
    """As ONNX Runtime's QOperator format has it, with the bytes pooled and added."""
    bytes_, about = net.bytes("x")
    scale = net.generator.uniform(1e-3, 3e-3, 8).astype(np.float32)
    weight = (
        net.hold(net.integers(8, 8, 3, 3, limit=SMALL)),
        net.hold(scale),
        net.hold(np.zeros(8, np.int8)),
    )
    after = net.hold(np.float32(0.03)), net.hold(np.uint8(99))
    offsets = net.hold(net.generator.integers(-900, 900, 8).astype(np.int32))
    conv = net.op("QLinearConv", bytes_, *about, *weight, *after, offsets, pads=[1, 1, 1, 1])
    added = net.op("QLinearAdd", conv, *after, bytes_, *about, *after, domain="com.microsoft")
    return net.op("DequantizeLinear", added, *after)


def float_weight(net: Net) -> str:
    """As NNCF and PyTorch write it: the weight is quantized in the graph."""
    scale = net.hold(np.full(6, 0.02, np.float32)), net.hold(np.zeros(6, np.int8))
    whole = net.op("QuantizeLinear", net.floats(6, 8, 3, 3), *scale, axis=0)
    weight = net.op("DequantizeLinear", whole, *scale, axis=0)
    return net.q(net.op("Conv", net.q("x"), weight), 0.2, 120)


def picked(net: Net) -> str:
    """As NNCF writes it: bytes go through a pool without another conversion."""
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    pool = net.op("MaxPool", start, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    one = net.q(net.conv(pool, 8, 8), 0.03, 120)
    return net.q(net.op("Add", one, pool), 0.05, 110)


def by_channel(net: Net, kind: type = np.uint8, zero: int = 0) -> str:
    """As NNCF writes it: what a depthwise layer reads has a scale for each channel."""
    inner = net.conv(net.q("x"), 8, 8)
    if kind is np.uint8:
        limits = net.hold(np.float32(0)), net.hold(np.float32(6))
        inner = net.op("Clip", inner, *limits)
    scale = net.generator.uniform(0.015, 6 / 255, 8).astype(np.float32)
    about = net.hold(scale), net.hold(np.full(8, zero, kind))
    whole = net.op("QuantizeLinear", inner, *about, axis=1)
    back = net.op("DequantizeLinear", whole, *about, axis=1)
    return net.q(net.conv(back, 8, 8, 3, group=8), 0.02, 110)


def by_channel_signed(net: Net) -> str:
    return by_channel(net, np.int8, 0)


def along_width(net: Net) -> str:
    """A scale for each column of pixels is none of channels."""
    bytes_, about = net.bytes("x")
    whole = net.hold(net.integers(11, 8, 1, 1, limit=SMALL))
    sums = net.op("ConvInteger", bytes_, whole, about[1], net.hold(np.int8(0)))
    scale = net.hold((0.03 * net.generator.uniform(1e-3, 3e-3, 11)).astype(np.float32))
    return net.q(net.op("Mul", net.op("Cast", sums, to=1), scale), 0.02, 100)


def test_what_only_looks_like_a_quantizers_work_stays() -> None:
    net = Net(*IMAGES)
    model = net.model(along_width(net))
    assert agree(model, net.feeds()).report.operators == {}


def microsoft(net: Net) -> str:
    inner = net.conv(net.q("x", domain="com.microsoft"), 8, 8)
    return net.q(inner, domain="com.microsoft")


def twice(net: Net) -> str:
    """Each reader has a pair of its own, and one is quantized twice."""
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    again = [net.q(net.q(start, 0.03, 110), 0.03, 110) for _ in range(2)]
    return net.q(net.op("Add", net.q(net.conv(again[0], 8, 8), 0.03, 100), again[1]), 0.05, 100)


@pytest.mark.parametrize(
    ("build", "operators"),
    [
        (integer_conv, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
        (integer_product, {"QuantLinear": 1}),
        (qlinear_conv, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
        (float_weight, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
        (
            by_channel,
            {"QuantizeImage": 1, "QuantConv": 1, "QuantDepthwiseConv": 1, "DequantizeImage": 1},
        ),
        (
            by_channel_signed,
            {"QuantizeImage": 1, "QuantConv": 1, "QuantDepthwiseConv": 1, "DequantizeImage": 1},
        ),
        (picked, {"QuantizeImage": 1, "QuantConv": 2, "QuantMaxPool": 1, "DequantizeImage": 1}),
        (microsoft, {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}),
        (twice, {"QuantizeImage": 1, "QuantConv": 2, "DequantizeImage": 1}),
    ],
    ids=_name,
)
def test_what_other_tools_write(build: Build, operators: dict[str, int]) -> None:
    net = Net(*IMAGES)
    result = agree(net.model(build(net)), net.feeds())
    assert result.report.operators == operators
    (wanted,), (value,) = result.plain, result.outputs
    assert np.ptp(wanted) > 0
    assert np.abs(value - wanted).max() <= 0.2001


def sixteen_bits(net: Net) -> str:
    return net.q(net.conv(net.q("x", kind=np.uint16), 8, 8))


def half(net: Net) -> str:
    """A model in float16 but for its ends."""
    about = net.hold(np.float16(0.03)), net.hold(np.uint8(120))
    whole = net.op("QuantizeLinear", net.op("Cast", "x", to=10), *about)
    scale = net.hold(np.float16(2e-3)), net.hold(np.int8(0))
    weight = net.op("DequantizeLinear", net.hold(net.integers(8, 8, 1, 1)), *scale)
    value = net.op("Conv", net.op("DequantizeLinear", whole, *about), weight)
    back = net.op("QuantizeLinear", value, *about)
    return net.op("Cast", net.op("DequantizeLinear", back, *about), to=1)


def by_blocks(net: Net) -> str:
    whole = net.hold(net.integers(8, 8, 1, 1))
    scale = net.hold(np.full((8, 2, 1, 1), 2e-3, np.float32))
    weight = net.op("DequantizeLinear", whole, scale, axis=1, block_size=4)
    return net.q(net.op("Conv", net.q("x"), weight))


def computed(net: Net) -> str:
    bias = net.op("ReduceMean", "x", net.hold(np.array([0, 2, 3])), keepdims=0)
    return net.q(net.op("Conv", net.q("x"), net.weight(8, 8, 1, 1), bias))


def asymmetric(net: Net) -> str:
    whole = net.hold(net.generator.integers(0, 256, (8, 8, 1, 1)).astype(np.uint8))
    weight = net.op("DequantizeLinear", whole, net.hold(np.float32(1e-3)), net.hold(np.uint8(3)))
    return net.q(net.op("Conv", net.q("x"), weight))


def unread(net: Net) -> str:
    return net.conv(net.q("x"), 8, 8)


def shown(net: Net) -> str:
    inner = net.conv(net.q("x"), 8, 8)
    return net.op("Add", inner, net.q(inner))


def huge_bias(net: Net) -> str:
    bias = net.hold(np.full(8, 3e5, np.float32))
    return net.q(net.op("Conv", net.q("x"), net.weight(8, 8, 1, 1), bias), 2000.0, 0)


def float_input(net: Net) -> str:
    return net.q(net.op("Conv", "x", net.weight(8, 8, 1, 1)))


def other_axis(net: Net) -> str:
    return net.q(net.op("Conv", net.q("x"), net.weight(8, 8, 1, 1, axis=1)))


def shared(net: Net) -> str:
    """One weight in two layers with inputs of different scales, one bias, one DQ for all."""
    start = net.q("x")
    weight, bias = net.weight(8, 8, 3, 3), net.floats(8)
    first = net.q(net.op("Conv", start, weight, bias, pads=[1, 1, 1, 1]), 0.05, 100)
    second = net.q(net.op("Conv", first, weight, bias, pads=[1, 1, 1, 1]), 0.1, 110)
    return net.q(net.op("Add", second, net.op("Add", first, start)), 0.1, 120)


def shown_bytes(net: Net) -> str:
    """Bytes are read by an operator that has no kernel of ours, and by one that has."""
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    cubed = net.op("Pow", net.op("ReduceMax", start), net.hold(np.float32(3)))
    return net.op("Add", net.q(net.conv(start, 8, 8), 0.03, 110), cubed)


def sizes_two(net: Net) -> str:
    """The bytes go to Resize, which ONNX Runtime runs on them."""
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    scales = net.hold(np.array([1, 1, 2, 2], np.float32))
    larger = net.q(net.op("Resize", start, "", scales, mode="nearest"), 0.03, 110)
    return net.q(net.conv(larger, 8, 8), 0.03, 110)


@pytest.mark.parametrize("build", [shared, shown_bytes, sizes_two], ids=_name)
def test_several_readers(build: Build) -> None:
    net = Net(*IMAGES)
    result = agree(net.model(build(net)), net.feeds())
    assert result.report.ours == len(result.report.rows) == 2
    (wanted,), (value,) = result.plain, result.outputs
    assert np.ptp(wanted) > 0
    assert np.abs(value - wanted).max() <= 0.1001


def first_sample(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    bounds = (net.hold(np.array([value])) for value in (0, 1, 0))
    return net.q(net.op("Slice", start, *bounds), 0.03, 110)


def first_rows(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    bounds = (net.hold(np.array([value])) for value in (0, 7, 2))
    return net.q(net.op("Slice", start, *bounds), 0.03, 110)


def other_way(net: Net) -> str:
    start = net.q(net.conv(net.q("x"), 8, 8), 0.03, 110)
    return net.q(net.op("Transpose", start, perm=[0, 1, 3, 2]), 0.03, 110)


@pytest.mark.parametrize("build", [first_sample, first_rows, other_way], ids=_name)
@pytest.mark.parametrize("shape", [IMAGES, ("N", 8, "H", "W")], ids=["sizes", "free"])
def test_moves_of_pixels_and_samples_are_none_of_channels(
    build: Build, shape: tuple[int | str, ...]
) -> None:
    net = Net(*shape)
    model = net.model(build(net))
    net.shape = ("N", 8, 9, 11)
    result = agree(model, net.feeds(3))
    assert "QuantChannels" not in result.report.operators
    assert result.report.ours == 1


def test_conversions_that_nothing_needs_are_not_put_in() -> None:
    net = Net(*IMAGES)
    start = net.q("x")
    tail = net.op("Tanh", net.op("MaxPool", start, kernel_shape=[2, 2]))
    whole = net.q(net.conv(start, 8, 8), 0.03, 110)
    result = agree(net.model(net.op("ReduceMax", tail), whole), net.feeds())
    assert result.report.operators == {"QuantizeImage": 1, "QuantConv": 1, "DequantizeImage": 1}
    kinds = [node.op_type for node in result.model.graph.node if not node.domain]
    assert kinds.count("QuantizeLinear") == 1


def test_bytes_may_be_what_a_graph_gives() -> None:
    net = Net(*IMAGES)
    whole, _ = net.bytes(net.conv(net.q("x"), 8, 8))
    model = net.model(whole)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    result = agree(model, net.feeds())
    assert result.report.operators == {"QuantizeImage": 1, "QuantConv": 1, "QuantLayout": 1}
    (wanted,), (value,) = result.plain, result.outputs
    assert value.dtype == np.uint8
    assert np.abs(value.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (sixteen_bits, "not 8 bits with one constant scale"),
        (half, "not 8 bits with one constant scale in float32"),
        (by_blocks, "a scale for each block"),
        (computed, "its bias is computed"),
        (asymmetric, "asymmetric"),
        (unread, "output is not quantized"),
        (shown, "used before it is quantized"),
        (huge_bias, "too large for sums of 32 bits"),
        (float_input, "input is not quantized"),
        (other_axis, "not those of output channels"),
    ],
    ids=_name,
)
def test_what_stays_says_why(build: Build, reason: str) -> None:
    net = Net(*IMAGES, opset=21)
    model = net.model(build(net))
    result = agree(model, net.feeds())
    assert result.report.operators == {}
    assert [row.is_ours for row in result.report.rows] == [False]
    assert reason in result.report.rows[0].reason
    assert _nodes(result.model) == _nodes(model)


def _nodes(model: onnx.ModelProto) -> list[Any]:
    return [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]


@pytest.mark.parametrize("build", [build for build, _ in CASES], ids=_name)
def test_the_way_back(build: Build) -> None:
    """ONNX's own operators again: bytes that differ, if any, do so by a step."""
    net = Net(*IMAGES)
    feeds = net.feeds()
    proto, report = lowered(net.model(build(net)))
    assert report.operators
    plain = plain_proto(proto)
    assert {node.domain for node in plain.graph.node} == {""}
    onnx.checker.check_model(plain, full_check=True)
    (ours,), (theirs,) = run(proto, feeds), run(plain, feeds, optimised=False)
    steps = np.abs(ours - theirs) / 0.01
    assert np.mean(steps > 0.5) < 0.01
