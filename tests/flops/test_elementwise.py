"""Operations that are no MACs: their stated cost, the same on both levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import nn

import st3fx
from tests.flops.graphs import Array, graph, saved

N = 2 * 4 * 6 * 6
ONE = np.ones(4, np.float32)

CASES: dict[str, tuple[nn.Module, str, dict[str, Any], list[Array], dict[str, int]]] = {
    "relu": (nn.ReLU(), "Relu", {}, [], {"relu": N}),
    "sigmoid": (nn.Sigmoid(), "Sigmoid", {}, [], {"sigmoid": 4 * N}),
    "tanh": (nn.Tanh(), "Tanh", {}, [], {"tanh": N}),
    "gelu": (nn.GELU(), "Gelu", {}, [], {"gelu": 5 * N}),
    "gelu_tanh": (nn.GELU("tanh"), "Gelu", {"approximate": "tanh"}, [], {"gelu_tanh": 9 * N}),
    "hardswish": (nn.Hardswish(), "HardSwish", {}, [], {"hardswish": 5 * N}),
    "hardsigmoid": (nn.Hardsigmoid(), "HardSigmoid", {}, [], {"hardsigmoid": 4 * N}),
    "leaky_relu": (nn.LeakyReLU(), "LeakyRelu", {}, [], {"leaky_relu": 2 * N}),
    "mish": (nn.Mish(), "Mish", {}, [], {"mish": 5 * N}),
    "softplus": (nn.Softplus(), "Softplus", {}, [], {"softplus": 3 * N}),
    "softmax": (nn.Softmax(-1), "Softmax", {}, [], {"softmax": 5 * N}),
    "log_softmax": (nn.LogSoftmax(-1), "LogSoftmax", {}, [], {"softmax": 5 * N}),
    "batch_norm": (nn.BatchNorm2d(4), "BatchNormalization", {}, [ONE] * 4, {"batch_norm": 2 * N}),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), "InstanceNormalization", {}, [ONE] * 2,
                      {"batch_norm": 8 * N}),
    "layer_norm": (nn.LayerNorm(6), "LayerNormalization", {}, [np.ones(6, np.float32)] * 2,
                   {"layer_norm": 8 * N}),
    # Windows of 3 over 6 values, stride 2, one padded before: 2 + 3 + 3 real values.
    "max_pool": (nn.MaxPool2d(3, 2, 1), "MaxPool",
                 {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [],
                 {"max_pool": 2 * 4 * 8 * 8}),
    "avg_pool": (nn.AvgPool2d(3, 2, 1), "AveragePool",
                 {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [],
                 {"avg_pool": 2 * 4 * (8 * 8 + 9)}),
    "global": (nn.AdaptiveAvgPool2d(1), "GlobalAveragePool", {}, [], {"avg_pool": N + 8}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_stated_costs_on_both_levels(name: str, tmp_path: Path) -> None:
    module, op, attributes, constants, expected = CASES[name]
    x = torch.randn(2, 4, 6, 6)
    report = st3fx.count_flops(module, x)
    assert {row.op: row.flops for row in report.by_op.values()} == expected
    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    model = graph([node], {"x": [2, 4, 6, 6]}, dict(zip(names, constants, strict=True)))
    file = st3fx.count_flops(saved(model, tmp_path))
    assert {row.op: row.flops for row in file.by_op.values()} == expected
    assert (report.unknown, file.unknown, report.dense_macs, file.dense_macs) == ({}, {}, 0, 0)
    assert report.elementwise_flops == sum(expected.values())


def test_windows_that_share_the_input_out() -> None:
    # 6 values into 4 windows: 2 each, of which they share some.
    report = st3fx.count_flops(nn.AdaptiveAvgPool2d((4, 3)), torch.randn(2, 4, 6, 6))
    assert report.by_op["avg_pool"].flops == 8 * (8 * 6 + 12)


def test_a_bias_is_an_addition() -> None:
    report = st3fx.count_flops(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5))
    assert report.by_op["add"].flops == 4 * 3 * 3
    report = st3fx.count_flops(nn.Linear(3, 4, bias=False), torch.randn(2, 3))
    assert report.by_op == {}


def test_arithmetic_on_integers_is_none() -> None:
    class Count(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    assert st3fx.count_flops(Count(), torch.zeros(3, dtype=torch.int64)).by_op == {}
    assert st3fx.count_flops(Count(), torch.zeros(3)).elementwise_flops == 3


def test_average_pooling_is_macs_in_str_alone() -> None:
    model = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1))
    x = torch.randn(2, 4, 6, 6)
    report = st3fx.count_flops(model, x, "str")
    # The window of 9 at each of 9 places, padding counted, then the 9 values that are left.
    assert report.by_layer["0:avg_pool"].dense_macs == 2 * 4 * 9 * 9
    assert report.by_layer["1:avg_pool"].sparse_macs == 2 * 4 * 9
    assert (report.dense_macs, report.by_op) == (8 * 90, {})
    assert st3fx.count_flops(model, x, "st3").dense_macs == 0
    tokens = nn.Sequential(nn.Flatten(2), nn.LayerNorm(36))
    assert st3fx.count_flops(tokens, x, "str").dense_macs == 0


def test_interpolation() -> None:
    x = torch.randn(1, 2, 3, 3)
    model = nn.Upsample(scale_factor=2, mode="bilinear")
    assert st3fx.count_flops(model, x).by_op["upsample_linear"].flops == 8 * 2 * 36
    assert st3fx.count_flops(nn.Upsample(scale_factor=2), x).by_op == {}
    assert F.interpolate(x, scale_factor=2).shape == (1, 2, 6, 6)
