from __future__ import annotations

import pytest
import torch

from st3fx.report.histogram import SMALL_BINS, Weights, count, small, spread


def site(values: torch.Tensor, threshold: float | None) -> Weights:
    cut = -1.0 if threshold is None else threshold
    return Weights(values, torch.where(values.abs() > cut, values, 0.0), threshold)


def test_counts_say_what_is_kept_and_what_is_pruned() -> None:
    counts = count(site(torch.tensor([-0.9, -0.6, -0.1, 0.1, 0.2, 0.7]), 0.5), 1.0, 4)
    assert list(counts.edges) == [-1, -0.5, 0, 0.5, 1]
    assert list(counts.kept) == [2, 0, 0, 1]
    assert list(counts.pruned) == [0, 1, 2, 0]
    assert counts.total == 6


def test_a_bin_ends_at_the_threshold() -> None:
    weights = torch.randn(20_000)
    found = spread([site(weights[:15_000], 0.7), site(weights[15_000:], 0.7)])
    assert (found.unit, found.threshold) == ("weight", 0.7)
    counts = found.counts
    assert min(abs(edge - 0.7) for edge in counts.edges) < 1e-9
    # No bin has both, and none is counted twice or lost.
    assert not any(k and p for k, p in zip(counts.kept, counts.pruned, strict=True))
    assert sum(counts.pruned) == int((weights.abs() <= 0.7).sum())
    assert counts.total + found.beyond == 20_000
    assert 0 < found.beyond <= 20


def test_thresholds_that_differ_become_the_unit() -> None:
    weights = torch.linspace(-1, 1, 1001)
    found = spread([site(weights, 0.5), site(10 * weights, 5.0)])
    assert (found.unit, found.threshold) == ("threshold", 1.0)
    alone = spread([site(weights, 0.5)])
    inside = [k + p for k, p in zip(found.counts.kept, found.counts.pruned, strict=True)]
    assert sum(inside) == 2 * alone.counts.total
    assert sum(found.counts.pruned) == 2 * sum(alone.counts.pruned)


@pytest.mark.parametrize("thresholds", [(None, None), (0.0, 0.5)])
def test_without_thresholds_to_compare_there_is_no_line(
    thresholds: tuple[float | None, ...],
) -> None:
    found = spread([site(torch.randn(500), threshold) for threshold in thresholds])
    assert found.unit == "weight"
    assert found.threshold == (None if thresholds == (None, None) else 0.5)
    assert found.counts.total + found.beyond == 1000


def test_weights_that_are_all_zero_or_half_precision() -> None:
    assert spread([site(torch.zeros(10), None)]).counts.total == 10
    found = spread([site(torch.randn(300).to(torch.bfloat16), 0.5)])
    assert found.counts.total + found.beyond == 300
    assert small(site(torch.zeros(4), None)).total == 4


def test_a_small_histogram_reaches_to_the_largest_weight() -> None:
    counts = small(site(torch.tensor([-4.0, 0.5, 2.0]), 1.0))
    assert (counts.reach, len(counts.kept), counts.total) == (4.0, SMALL_BINS, 3)
    assert counts.kept[0] == 1
