"""What accuracies a file may have."""

from __future__ import annotations

import pytest

from st3fx.quantization import engine


@pytest.mark.parametrize(
    ("samples", "points"), [(None, 1.0), (10_000, 1.0), (300, 1.0), (100, 3.0), (10, 30.0)]
)
def test_a_few_samples_may_be_answered_otherwise(samples: int | None, points: float) -> None:
    assert engine._allowed(engine.APART, samples) == points
