"""Convolutions of every kind: the count equals a convolution of ones, on both levels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import st3fx
from st3fx.flops.products import all_hits, line_hits, transposed_line_hits
from tests.flops.brute import dense_and_sparse, ones, prune
from tests.flops.graphs import Array, graph, of_layer, saved

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _drawn(seed: int) -> tuple[_ConvNd, Tensor]:
    """A layer and an input, from a seed."""
    draw = random.Random(seed)
    dims = draw.choice((1, 2, 2, 3))
    groups = draw.choice((1, 1, 2, 4))
    stride = [draw.randint(1, 3) for _ in range(dims)]
    settings: dict[str, Any] = {
        "kernel_size": [draw.randint(1, 4) for _ in range(dims)],
        "dilation": [draw.randint(1, 3) for _ in range(dims)],
        "stride": stride,
        "groups": groups,
        "bias": draw.random() < 0.5,
        "padding": [draw.randint(0, 3) for _ in range(dims)],
    }
    channels = groups * draw.randint(1, 3), groups * draw.randint(1, 3)
    x = torch.randn(draw.randint(1, 3), channels[0], *[draw.randint(10, 14) for _ in range(dims)])
    if draw.random() < 0.3:
        settings["output_padding"] = [draw.randint(0, size - 1) for size in stride]
        return prune(TRANSPOSED[dims - 1](*channels, **settings), seed=seed), x
    kind = draw.choice(("zeros", "zeros", "same", "valid", "reflect", "replicate", "circular"))
    if kind == "same":
        settings |= {"padding": "same", "stride": 1}
    elif kind == "valid":
        settings["padding"] = "valid"
    else:
        settings["padding_mode"] = kind
    return prune(LAYERS[dims - 1](*channels, **settings), seed=seed), x


def test_the_drawn_layers_are_of_every_kind() -> None:
    layers = [_drawn(seed)[0] for seed in range(40)]
    assert {type(layer) for layer in layers} == {*LAYERS, *TRANSPOSED}
    modes = {(layer.padding_mode, str(layer.padding)) for layer in layers}
    assert {mode for mode, _ in modes} == {"zeros", "reflect", "replicate", "circular"}
    assert {"'same'", "'valid'"} <= {repr(layer.padding) for layer in layers}


@pytest.mark.parametrize("seed", range(40))
def test_a_count_is_a_convolution_of_ones(seed: int, tmp_path: Path) -> None:
    layer, x = _drawn(seed)
    expected = dense_and_sparse(layer, x)
    report = st3fx.count_flops(layer, x)
    assert (report.dense_macs, report.sparse_macs) == expected
    assert expected[1] <= expected[0]
    file = st3fx.count_flops(saved(of_layer(layer, x), tmp_path))
    assert (file.dense_macs, file.sparse_macs) == expected
    padded = st3fx.count_flops(layer, x, "st3")
    places = x if layer.transposed else layer(x)
    positions = places.shape[0] * places[0, 0].numel()
    assert padded.dense_macs == layer.weight.numel() * positions
    assert padded.sparse_macs == int(layer.weight.count_nonzero()) * positions
    again = st3fx.count_flops(saved(of_layer(layer, x), tmp_path), convention="st3")
    assert (again.dense_macs, again.sparse_macs) == (padded.dense_macs, padded.sparse_macs)


class Padded(nn.Module):
    """Pads with ``value``, twice, then convolves with padding of its own."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 2, 0, 3), value=self.value)
        out: Tensor = self.conv(F.pad(x, (2, -1), value=self.value))
        return out


def _padded_graph(value: float) -> Any:
    from numpy import array, float32, int64

    model = prune(Padded())
    nodes = [
        helper.make_node("Pad", ["x", "first", "value"], ["a"]),
        helper.make_node("Pad", ["a", "second", "value"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    constants: dict[str, Array] = {
        "first": array([0, 0, 0, 1, 0, 0, 3, 2], int64),
        "second": array([0, 0, 0, 2, 0, 0, 0, -1], int64),
        "value": array(value, float32),
        "w": model.get_parameter("conv.weight").detach().numpy(),
    }
    return graph(nodes, {"x": [2, 2, 9, 8]}, constants)


def test_zeros_that_are_padded_before_cost_nothing(tmp_path: Path) -> None:
    model = prune(Padded())
    x = torch.randn(2, 2, 9, 8)
    conv = model.get_submodule("conv")
    assert isinstance(conv, _ConvNd)
    expected = []
    for weight in (torch.ones_like(conv.weight), (conv.weight != 0).float()):
        padded = F.pad(F.pad(torch.ones_like(x), (1, 2, 0, 3)), (2, -1))
        out = F.conv2d(padded, weight, stride=2, padding=1)
        expected.append(int(out.double().sum().item()))
    report = st3fx.count_flops(model, x)
    assert [report.dense_macs, report.sparse_macs] == expected
    file = st3fx.count_flops(saved(_padded_graph(0), tmp_path))
    assert [file.dense_macs, file.sparse_macs] == expected


def test_other_values_that_are_padded_are_real(tmp_path: Path) -> None:
    model = prune(Padded(1.0))
    conv = model.get_submodule("conv")
    assert isinstance(conv, _ConvNd)
    expected = ones(conv, torch.ones(2, 2, 12, 12), torch.ones_like(conv.weight))
    assert st3fx.count_flops(model, torch.randn(2, 2, 9, 8)).dense_macs == expected
    assert st3fx.count_flops(saved(_padded_graph(1), tmp_path)).dense_macs == expected


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_padding_by_rule_is_that_of_onnx_runtime(op: str, rule: str, tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime as ort

    weight = (np.random.default_rng(0).random((2, 2, 4, 3)) < 0.5).astype(np.float32)
    node = helper.make_node(op, ["x", "w"], ["y"], strides=[2, 3], auto_pad=rule)
    path = saved(graph([node], {"x": [1, 2, 9, 8]}, {"w": weight}), tmp_path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out = session.run(None, {"x": np.ones((1, 2, 9, 8), np.float32)})[0]
    assert st3fx.count_flops(path).sparse_macs == int(out.sum())


def test_output_shape_is_that_of_onnx_runtime(tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime as ort

    weight = (np.random.default_rng(0).random((2, 2, 4, 4)) < 0.5).astype(np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2],
                            output_shape=[9, 9])  # fmt: skip
    path = saved(graph([node], {"x": [1, 2, 5, 5]}, {"w": weight}), tmp_path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out = session.run(None, {"x": np.ones((1, 2, 5, 5), np.float32)})[0]
    assert st3fx.count_flops(path).sparse_macs == int(out.sum())


@pytest.mark.parametrize("count", [line_hits, transposed_line_hits])
def test_hits_are_what_a_loop_counts(count: Any) -> None:
    draw = random.Random(1)
    for _ in range(200):
        stride, padding, dilation = draw.randint(1, 4), draw.randint(0, 5), draw.randint(1, 4)
        kernel, outputs = draw.randint(1, 5), draw.randint(1, 12)
        low = draw.randint(0, 4)
        window = (low, low + draw.randint(0, 8))
        if count is line_hits:
            expected = [
                sum(window[0] <= o * stride - padding + k * dilation < window[1]
                    for o in range(outputs))
                for k in range(kernel)
            ]  # fmt: skip
        else:
            expected = [
                sum(0 <= i * stride - padding + k * dilation < outputs for i in range(*window))
                for k in range(kernel)
            ]
        found = count(
            outputs, window, kernel=kernel, stride=stride, padding=padding, dilation=dilation
        )
        assert found == expected
    assert all_hits([[1, 2], [3, 4]]) == [3, 4, 6, 8]
