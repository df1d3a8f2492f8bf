"""What is counted of weights in files decides as the weights in memory do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from st3fx.errors import StateError
from st3fx.sparsity import stored, tally
from st3fx.sparsity.granularity import Grouping
from st3fx.sparsity.stored import Stored
from st3fx.sparsity.threshold import search, ties
from st3fx.sparsity.threshold.search import GlobalThreshold


@pytest.mark.parametrize("dtype", tally.HALF)
def test_each_magnitude_is_counted(dtype: torch.dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = torch.cat([every, every[:100]])[torch.randperm((1 << 16) + 100)]
    found = tally.magnitudes_of(every.view(dtype).split(1000), dtype)
    wanted, counts = np.unique(every.view(dtype).abs().float().numpy(), return_counts=True)
    numbers = ~np.isnan(found.values)
    assert np.array_equal(found.values[numbers], wanted[~np.isnan(wanted)])
    assert np.array_equal(found.counts[numbers], counts[~np.isnan(wanted)])
    assert found.numel() == len(every)
    assert found.zeros == int((every.view(dtype) == 0).sum())
    assert not numbers[found.counts[numbers].size :].any()  # at the end


def test_first_bits() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5000).abs() * torch.randint(-40, 40, (5000,)).exp2()
    scores[:50] = 0.0
    scores[50:60] = 1e-42
    found = tally.first_bits_of(scores)
    kinds = scores.view(torch.int32).numpy() >> tally.LOWER << tally.LOWER
    values, counts = np.unique(kinds.view(np.float32), return_counts=True)
    assert np.array_equal(found.values, values)
    assert np.array_equal(found.counts, counts)
    assert found.zeros == 50


@pytest.mark.parametrize("dtype", tally.HALF)
def test_places(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(700, 1000) * 10).round().to(dtype)  # larger than a block
    for first, last in ((3.0, 3.0), (2.0, 5.0), (0.0, 0.0)):
        wanted = ((weight.abs() >= first) & (weight.abs() <= last)).reshape(-1).nonzero()[:, 0]
        assert torch.equal(tally.places_of(weight, first, last), wanted)


def _in_file(weight: Tensor, read: list[int]) -> Stored:
    def rows(first: int, last: int) -> Tensor:
        read.append((last - first) * weight[0].numel())
        return weight[first:last].clone()

    return Stored(weight.shape, weight.dtype, rows)


GROUPS: dict[str, Grouping | None] = {
    "single": None, "block": Grouping((1,), 0, 4, 1), "nm": Grouping((1,), 2, 4, 1),
    "rows": Grouping((1,), 0, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("grouping", GROUPS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_thresholds(
    grouping: str, tied: bool, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same threshold, the same sites without a weight, the same split of ties, to the bit."""
    monkeypatch.setattr(stored, "PIECE", 128)
    if small:  # bands are crowded, keys many
        monkeypatch.setattr(search, "ROOM", 8)
        monkeypatch.setattr(ties, "_MANY", 4)
    generator = torch.Generator().manual_seed(0)
    for kinds in ((torch.bfloat16,) * 3, (torch.float32,) * 3,
                  (torch.float32, torch.bfloat16, torch.float16, torch.float64)):  # fmt: skip
        weights = [torch.randn(30 + 7 * i, 18, generator=generator) for i in range(len(kinds))]
        weights = [(w * 8).round() / 8 if tied else w for w in weights]
        weights = [w.to(kind) for w, kind in zip(weights, kinds, strict=True)]
        groupings = [GROUPS[grouping]] * len(weights)
        for share, costs, scale in ((0.3, None, 1.0), (0.75, [3, 1, 2, 5], 1.0), (0.9, None, 0.3)):
            how: Any = ([scale] * len(weights), share, costs and costs[: len(weights)], groupings)
            here, there = GlobalThreshold(), GlobalThreshold()
            wanted = here.find(weights, *how)
            found = there.find([_in_file(w, []) for w in weights], *how)
            assert torch.equal(found, wanted)
            assert there.empty == here.empty
            assert set(there.ties) == set(here.ties)
            assert all(torch.equal(there.ties[i], here.ties[i]) for i in here.ties)
            assert here.ties or not (tied and grouping == "single")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_no_number(value: float, dtype: torch.dtype) -> None:
    weights = [torch.randn(20, 10).to(dtype) for _ in range(2)]
    weights[1][3:] = value
    with pytest.raises(StateError, match=r"are (NaN|infinite)"):
        GlobalThreshold().find([_in_file(w, []) for w in weights], [1.0, 1.0], 0.9)


@pytest.mark.parametrize(("dtype", "passes"), [(torch.bfloat16, 1), (torch.float32, 2)])
def test_few_passes(dtype: torch.dtype, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision is read once, single precision twice; zeros are counted meanwhile."""
    monkeypatch.setattr(stored, "PIECE", 1 << 10)
    torch.manual_seed(0)
    read: list[int] = []
    own = [_in_file(torch.randn(300, 50).to(dtype), read) for _ in range(3)]
    assert sum(weight.zeros(None, 1.0) for weight in own) == 0
    threshold = GlobalThreshold()
    threshold.find(own, [1.0] * 3, 0.8)
    split = 50 * 300 * len(threshold.ties)  # where many are equal, their places are looked for
    assert sum(read) == passes * 3 * 300 * 50 + split * (dtype == torch.bfloat16)
