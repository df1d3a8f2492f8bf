"""The exact global quantile, against NumPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from st3fx.sparsity.threshold.search import global_threshold

FRACTIONS = [1e-6, 0.1, 0.25, 0.3333, 0.5, 0.9, 0.99, 1 - 1e-6]

SCORES = {
    "random": torch.rand(1000, generator=torch.Generator().manual_seed(1)),
    "ties": torch.tensor([3.0, 1.0, 1.0, 2.0, 2.0, 2.0, 5.0]),
    "ties at the top": torch.tensor([1.0, 4.0, 4.0, 4.0]),
    "all equal": torch.full((17,), 0.25),
    "all zero": torch.zeros(5),
    "one": torch.tensor([0.7]),
    "two": torch.tensor([0.2, 0.1]),
    "whole indices": torch.arange(101).flip(0),
}


def sorted_quantile(scores: list[torch.Tensor], fraction: float) -> float:
    """The definition, by sorting, in the arithmetic of single precision."""
    values = torch.cat([score.flatten() for score in scores]).sort().values
    index = (len(values) - 1) * fraction
    low, high = values[math.floor(index)], values[math.ceil(index)]
    return (low + (high - low) * (index - math.floor(index))).item()


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_it_is_the_linear_quantile(scores: torch.Tensor, fraction: float) -> None:
    actual = global_threshold([scores], [1.0], fraction)
    assert actual.dim() == 0
    assert actual.dtype == torch.float32
    assert actual.item() == sorted_quantile([scores], fraction)
    expected = np.quantile(scores.double().numpy(), fraction, method="linear")
    assert actual.item() == pytest.approx(expected, rel=1e-6, abs=0)


def test_the_global_threshold_is_over_all_weights_and_scaled() -> None:
    weights = [torch.randn(4, 3, 3, 3), torch.randn(10, 7).double(), torch.randn(5, 2).half()]
    scales = [0.5, 1.0, 0.25]
    scores = np.concatenate(
        [w.abs().float().numpy().ravel() / s for w, s in zip(weights, scales, strict=True)]
    )
    actual = global_threshold(weights, scales, 0.83)
    assert actual.dtype == torch.float32
    expected = np.quantile(scores.astype(np.float64), 0.83, method="linear")
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_the_global_threshold_carries_no_gradient() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    assert not global_threshold([weight], [1.0], 0.5).requires_grad
