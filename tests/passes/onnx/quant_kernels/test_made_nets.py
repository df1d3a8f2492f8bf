"""Random quantized graphs agree with ONNX Runtime's float32, and cases that such graphs have found.

``ST3FX_MADE_NETS`` takes more than the usual number of graphs, ``ST3FX_MADE_NETS_FROM`` another
first seed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from st3fx.runtime.costs import quant_costs
from tests.passes.onnx.quant_kernels.agreement import OURS_WIN, agree, run
from tests.passes.onnx.quant_kernels.made_nets import MadeNet
from tests.passes.onnx.quant_kernels.nets import Array, Net

COUNT = int(os.environ.get("ST3FX_MADE_NETS", "16"))
FIRST = int(os.environ.get("ST3FX_MADE_NETS_FROM", "0"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_random_graph(seed: int) -> None:
    model, feeds = MadeNet(seed).made()
    for costs in (OURS_WIN, quant_costs()) if seed % 4 == 0 else (OURS_WIN,):
        found = agree(model, feeds, costs)
        optimised = _optimised(found.model, feeds)
        for value, plain in zip(optimised, found.plain, strict=bool(optimised)):
            assert (value.shape, value.dtype) == (plain.shape, plain.dtype)


def _optimised(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """The outputs of an optimised session; none where operators of its own refuse the scales."""
    try:
        return run(model, feeds)
    except RuntimeException as error:
        if "QLinearGlobalAveragePool parameter out of computation range" not in str(error):
            raise
        return []


IMAGES = ("N", 8, 9, 11)


def inner_clip(net: Net) -> str:
    """What the first ``Clip`` leaves lies below what the last one does."""
    low, high = net.hold(np.float32(-2)), net.hold(np.float32(-1))
    clipped = net.op("Clip", net.conv(net.q("x"), 12, 8), low, high)
    return net.q(net.op("Relu", clipped), 0.02, 60)


def largest_limit(net: Net) -> str:
    limits = net.hold(np.float32(0)), net.hold(np.finfo(np.float32).max)
    return net.q(net.op("Clip", net.conv(net.q("x"), 12, 8), *limits), 0.02, 60)


def signed_bytes_out(net: Net) -> tuple[str, str]:
    whole, about = net.bytes(net.conv(net.q("x"), 12, 8), 0.03, -3, np.int8)
    return whole, net.q(net.conv(net.op("DequantizeLinear", whole, *about), 12, 12))


def signed_bytes_in(net: Net) -> str:
    """int8 that no node of the graph quantizes."""
    whole = net.op("Cast", net.op("Round", net.op("Clip", "x", "", "")), to=TensorProto.INT8)
    about = net.hold(np.float32(0.02)), net.hold(np.int8(-3))
    return net.q(net.conv(net.op("DequantizeLinear", whole, *about), 12, 8))


def far_scales(net: Net) -> str:
    return net.q(net.conv(net.q("x", 1e30), 12, 8), 1e-30)


def far_sum(net: Net) -> str:
    """A factor of the residual that the operator has no room for."""
    value = net.q("x", 3.0, 255)
    return net.q(net.op("Add", net.q(net.conv(value, 8, 8), 0.01), value), 1e-4)


def far_average(net: Net) -> str:
    value = net.op("AveragePool", net.q("x", 1e-30), kernel_shape=[2, 2])
    return net.q(net.conv(net.q(value, 1e20), 12, 8))


def constant_bytes_out(net: Net) -> tuple[str, str]:
    """Bytes of a constant that are an output too."""
    whole, about = net.bytes(net.floats(8, 1, 1))
    value = net.op("Add", net.q("x"), net.op("DequantizeLinear", whole, *about))
    return whole, net.q(net.conv(net.q(value), 12, 8))


def bias_of_rank(net: Net) -> str:
    """A bias with which the product gets one more dimension."""
    flat = net.q(net.op("ReduceMean", net.q("x"), net.hold(np.array([2, 3])), keepdims=0))
    return net.op("Add", net.op("MatMul", flat, net.weight(8, 16, axis=1)), net.floats(1, 1, 16))


@pytest.mark.parametrize(
    "build",
    [inner_clip, largest_limit, signed_bytes_out, signed_bytes_in, far_scales, far_sum,
     far_average, constant_bytes_out, bias_of_rank],
)  # fmt: skip
def test_cases_that_were_found(build: Callable[[Net], str | tuple[str, ...]]) -> None:
    net = Net(*IMAGES)
    outputs = build(net)
    model = net.model(*([outputs] if isinstance(outputs, str) else outputs))
    found = agree(model, net.feeds())
    for value, plain in zip(found.outputs, found.plain, strict=True):
        assert (value.shape, value.dtype) == (plain.shape, plain.dtype)


def backwards(net: Net, value: str) -> str:
    """The images of a batch in the other order."""
    parts = (np.array([part]) for part in (-1, -(1 << 31), 0, -1))
    return net.op("Slice", value, *(net.hold(part) for part in parts))


def first_image(net: Net, value: str) -> str:
    return net.op("Gather", value, net.hold(np.array([0])), axis=0)


def first_rows(net: Net, value: str) -> str:
    parts = (np.array([part]) for part in (0, 7, 2))
    return net.op("Slice", value, *(net.hold(part) for part in parts))


@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize("move", [backwards, first_image, first_rows])
def test_whole_images_and_pixels_that_move(
    move: Callable[[Net, str], str], batch: int | str
) -> None:
    net = Net(batch, 8, "H", "W")
    value = net.q(net.conv(net.q("x"), 8, 8))
    model = net.model(net.q(net.conv(net.q(move(net, value)), 8, 8)))
    feeds = {"x": net.generator.standard_normal((2, 8, 9, 11)).astype(np.float32)}
    found = agree(model, feeds)
    assert found.outputs[0].shape == found.plain[0].shape
    assert found.report.operators["QuantConv"] == 2
    assert "QuantChannels" not in found.report.operators


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_an_image_that_all_of_a_batch_share(op: str) -> None:
    net = Net(3, 8, 9, 11)
    value = net.q(net.conv(net.q("x"), 8, 8))
    one = net.q(net.op("ReduceMean", value, net.hold(np.array([0] if op == "Add" else [0, 2, 3]))))
    model = net.model(net.q(net.op(op, value, one)))
    found = agree(model, net.feeds())
    assert "QuantAdd" not in found.report.operators
    assert "QuantScale" not in found.report.operators


def test_seeds_make_the_same_graph_and_different_ones() -> None:
    first, again, other = (MadeNet(seed) for seed in (5, 5, 6))
    texts = [onnx.printer.to_text(net.made()[0]) for net in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
