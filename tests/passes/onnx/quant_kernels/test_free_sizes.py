"""Images whose sizes are free: what may be added, and pools of images smaller than their window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.passes.onnx.quant_kernels.agreement import agree, lowered, run
from tests.passes.onnx.quant_kernels.nets import Net

FREE = ("n", 8, "h", "w")


def conv(net: Net, value: str, **about: Any) -> str:
    return net.q(net.conv(value, 8, 8, **about))


def residual(net: Net) -> tuple[str, str]:
    value = conv(net, net.q("x"))
    return value, conv(net, value, kernel=3)


def halved(net: Net) -> tuple[str, str]:
    value = conv(net, net.q("x"))
    main = conv(net, net.q(net.op("Relu", conv(net, value, kernel=3, strides=[2, 2]))), kernel=3)
    return main, conv(net, value, strides=[2, 2])


def quartered(net: Net) -> tuple[str, str]:
    """Twice by two, and once by four."""
    value = conv(net, net.q("x"))
    pooled = net.op("MaxPool", value, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    twice = conv(net, net.q(pooled), strides=[2, 2])
    return twice, conv(net, value, strides=[4, 4])


def shuffled(net: Net) -> tuple[str, str]:
    value = conv(net, net.q("x"))
    joined = net.q(net.op("Concat", value, conv(net, value, kernel=5), axis=1))
    weight = net.weight(8, 16, 1, 1)
    return net.q(net.op("Conv", joined, weight, net.floats(8))), value


@pytest.mark.parametrize("build", [residual, halved, quartered, shuffled])
@pytest.mark.parametrize("size", [(9, 11), (16, 7), (1, 2)])
def test_equal_sizes_are_added(
    build: Callable[[Net], tuple[str, str]], size: tuple[int, int]
) -> None:
    net = Net(*FREE)
    model = net.model(net.q(net.op("Add", *build(net))))
    feeds = {"x": net.generator.standard_normal((2, 8, *size)).astype(np.float32)}
    found = agree(model, feeds)
    factors = [about.name for node in found.model.graph.node for about in node.attribute]
    assert len({"sum_factor", "a_factor"}.intersection(factors)) == 1
    assert found.outputs[0].shape == found.plain[0].shape


def other_size(net: Net) -> tuple[str, str]:
    """A row and a column less: equal for no image, broadcast for one of 2x2."""
    value = conv(net, net.q("x"))
    return value, conv(net, value, kernel=3, pads=[1, 1, 0, 0])


def other_rounding(net: Net) -> tuple[str, str]:
    """Halves that are equal for odd sizes alone."""
    value = conv(net, net.q("x"))
    pooled = net.op("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    floor = net.op("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    return net.q(pooled), net.q(floor)


@pytest.mark.parametrize(("build", "size"), [(other_size, (2, 2)), (other_rounding, (2, 3))])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_sizes_that_differ_are_broadcast(
    build: Callable[[Net], tuple[str, str]], size: tuple[int, int], op: str
) -> None:
    net = Net(*FREE)
    model = net.model(net.q(net.op(op, *build(net))))
    feeds = {"x": net.generator.standard_normal((2, 8, *size)).astype(np.float32)}
    found = agree(model, feeds)
    assert found.report.operators["QuantConv"] > 0
    assert not {"QuantAdd", "QuantScale"} & {*found.report.operators}
    assert found.outputs[0].shape == found.plain[0].shape


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_batches_of_two_inputs_are_broadcast(op: str) -> None:
    net = Net(*FREE)
    first = conv(net, net.q("x"))
    second = net.q(net.op("GlobalAveragePool", net.q("z")) if op == "Mul" else "z")
    model = net.model(net.q(net.op(op, first, second)))
    shape: list[str | int | None] = ["m", 8, "h", "w"]
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, shape))
    proto, report = lowered(model)
    assert report.operators["QuantConv"] == 1
    x = net.generator.standard_normal((3, 8, 5, 6)).astype(np.float32)
    for batch in (1, 3):
        feeds = {"x": x, "z": x[:batch]}
        (ours,), (plain,) = (run(each, feeds, optimised=False) for each in (proto, model))
        assert ours.shape == plain.shape
        assert np.abs(ours - plain).max() < 0.031


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize(
    "about",
    [
        {"kernel_shape": [5, 5], "strides": [3, 3], "ceil_mode": 1},
        {"kernel_shape": [3, 1], "strides": [2, 1]},
        {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 0, 1, 0]},
    ],
)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_images_smaller_than_the_window(op: str, about: dict[str, Any], free: bool) -> None:
    size = {5: (3, 3), 3: (2, 2), 4: (1, 3)}[about["kernel_shape"][0]]
    net = Net(*(FREE if free else (2, 8, *size)))
    model = net.model(net.q(net.op(op, conv(net, net.q("x")), **about)))
    feeds = {"x": net.generator.standard_normal((2, 8, *size)).astype(np.float32)}
    found = agree(model, feeds)
    assert found.outputs[0].shape == found.plain[0].shape
    assert f"Quant{op}" in found.report.operators


def test_an_average_that_counts_what_is_not_there_stays() -> None:
    """ONNX Runtime divides by the kernel up to opset 18, and by what padding has from 19 on."""
    for size, ours in ((3, False), (4, True)):
        net = Net(2, 8, size, 5, opset=18)
        pool = net.op("AveragePool", conv(net, net.q("x")), kernel_shape=[4, 1], strides=[2, 1],
                      count_include_pad=1)  # fmt: skip
        found = agree(net.model(net.q(pool)), net.feeds())
        assert ("QuantAveragePool" in found.report.operators) == ours
