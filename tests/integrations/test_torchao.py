"""Integers of torchao over folded weights keep zeros; over a converted model they are refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import StateError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

X = torch.randn(6, 64, generator=torch.Generator().manual_seed(5))


def converted() -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    model, sparsifier = st3fx.convert(layers, X, st3fx.ST3(0.8), verify=False)
    sparsifier.set_sparsity(0.8)
    return model.eval(), sparsifier


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig])
def test_integers_keep_the_zeros_of_a_folded_model(config: Any) -> None:
    folded = st3fx.fold(converted()[0])
    layers: list[Any] = [layer for layer in folded.children() if isinstance(layer, nn.Linear)]
    zeros = [layer.weight == 0 for layer in layers]
    expected = folded(X)
    quantize_(folded, config())
    for layer, zero in zip(layers, zeros, strict=True):
        assert zero.float().mean() > 0.7
        assert not bool(layer.weight.dequantize()[zero].any())
    assert (folded(X) - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_converted_model_is_refused() -> None:
    model, _ = converted()
    with pytest.raises(StateError, match=r"0.weight has a threshold, and torchao\S* .* fold first"):
        quantize_(model, Int8WeightOnlyConfig())
