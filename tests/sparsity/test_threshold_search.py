"""The search for the global threshold: equal to sorting, over any weights and any history."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from st3fx.errors import StateError
from st3fx.sparsity.threshold.scan import BLOCK
from st3fx.sparsity.threshold.search import GlobalThreshold

SPARSITIES = [1e-9, 1e-4, 0.03, 0.5, 0.7777, 0.9, 0.999, 1 - 1e-9]


def scores_of(weights: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    parts = [
        w.detach().abs().float().flatten() / torch.tensor(s)
        for w, s in zip(weights, scales, strict=True)
    ]
    return torch.cat(parts)


def by_sorting(weights: Sequence[Tensor], scales: Sequence[float], sparsity: float) -> float:
    """The definition, in the arithmetic of single precision."""
    values = scores_of(weights, scales).sort().values
    index = (len(values) - 1) * sparsity
    low, high = values[math.floor(index)], values[math.ceil(index)]
    return float(low + (high - low) * (index - math.floor(index)))


def by_cost(
    weights: Sequence[Tensor], scales: Sequence[float], sparsity: float, costs: Sequence[int]
) -> float:
    """The smallest score up to which scores cost a share ``sparsity`` of all, one by one."""
    each = [
        (score, cost)
        for weight, scale, cost in zip(weights, scales, costs, strict=True)
        for score in scores_of([weight], [scale]).tolist()
    ]
    total, spent = sum(cost for _, cost in each), 0
    ordered = sorted(each)
    for index, (score, cost) in enumerate(ordered):
        spent += cost
        last_of_its_kind = index + 1 == len(ordered) or ordered[index + 1][0] != score
        if last_of_its_kind and spent >= total * sparsity:
            return float(score)
    raise AssertionError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pruned_before(g: torch.Generator) -> list[Tensor]:
    weight = torch.randn(300, 40, generator=g)
    return [weight * (weight.abs() > 1.2), torch.randn(50, 7, generator=g)]


def spread_widely(g: torch.Generator) -> list[Tensor]:
    exponents = torch.rand(200, 30, generator=g) * 240 - 130
    return [torch.exp2(exponents), -torch.exp2(exponents * 0.5)]


FAMILIES: dict[str, Any] = {
    "normal": lambda g: [torch.randn(64, 27, generator=g), torch.randn(10, 64, generator=g)],
    "one huge, one tiny": lambda g: [torch.randn(3000, 30, generator=g), torch.ones(1, 1)],
    "few values": lambda g: [torch.randint(-3, 4, (90, 31), generator=g).float()],
    "all equal layers": lambda g: [torch.full((20, 30), 0.5), torch.full((10, 10), -0.25)],
    "a layer of zeros": lambda g: [torch.zeros(40, 40), torch.randn(30, 30, generator=g)],
    "all zero": lambda g: [torch.zeros(4, 5), torch.zeros(7, 1)],
    "pruned before": pruned_before,
    "of all magnitudes": spread_widely,
    "denormals": lambda g: [torch.randn(50, 50, generator=g) * 1e-41],
    "two peaks": lambda g: [torch.randn(99, 9, generator=g), torch.randn(99, 9, generator=g) * 1e6],
    "one": lambda g: [torch.randn(1, 1, generator=g)],
    "two": lambda g: [torch.randn(1, 2, generator=g)],
    "three": lambda g: [torch.randn(1, 1, generator=g), torch.randn(2, 1, generator=g)],
    "an empty one": lambda g: [torch.empty(0, 5), torch.randn(9, 9, generator=g)],
    "dtypes": lambda g: [
        torch.randn(30, 30, generator=g).to(t)
        for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ],
    "memory": lambda g: [
        torch.randn(8, 6, 5, 5, generator=g).to(memory_format=torch.channels_last),
        torch.randn(40, 60, generator=g)[::2, ::3],
        torch.randn(40, 60, generator=g).T[7:8].T,  # a vector with gaps
        torch.randn(40, 60, generator=g).half()[:, 1:30],
    ],
}  # fmt: skip
families = pytest.mark.parametrize("family", FAMILIES)


@families
@pytest.mark.parametrize("scaled", [False, True])
def test_it_equals_sorting(family: str, scaled: bool) -> None:
    weights = FAMILIES[family](seeded(1))
    scales = [(7 + 3 * i) ** -0.5 if scaled else 1.0 for i in range(len(weights))]
    again = GlobalThreshold()
    for sparsity in SPARSITIES:
        expected = by_sorting(weights, scales, sparsity)
        assert GlobalThreshold().find(weights, scales, sparsity).item() == expected
        assert again.find(weights, scales, sparsity).item() == expected  # from the last result


@families
@pytest.mark.parametrize("costs", [(1, 1, 1, 1), (1, 3136, 49, 7), (100_000, 1, 1, 900)])
def test_with_costs_it_is_the_smallest_score_that_is_enough(
    family: str, costs: Sequence[int]
) -> None:
    weights = FAMILIES[family](seeded(2))
    if sum(w.numel() for w in weights) > 20_000:
        weights = [w[:200] for w in weights]
    own, scales = costs[: len(weights)], [1.0, 0.5, 0.3, 0.2][: len(weights)]
    if sum(c * w.numel() for c, w in zip(own, weights, strict=True)) == 0:
        return
    again = GlobalThreshold()
    for sparsity in SPARSITIES:
        expected = by_cost(weights, scales, sparsity, own)
        assert GlobalThreshold().find(weights, scales, sparsity, own).item() == expected
        assert again.find(weights, scales, sparsity, own).item() == expected


@pytest.mark.parametrize("seed", range(12))
def test_over_weights_that_drift_and_jump(seed: int) -> None:
    """One finder over a history of weights, scales and sparsities, whatever comes next."""
    random = np.random.default_rng(seed)
    generator = seeded(seed)
    finder = GlobalThreshold()
    weights = [torch.randn(60, 50, generator=generator), torch.randn(30, 200, generator=generator)]
    scales, sparsity, costs = [1.0, 0.4], 0.5, None
    for _ in range(25):
        event = random.integers(9)
        if event < 4:
            weights = [w + 0.01 * torch.randn(w.shape, generator=generator) for w in weights]
        elif event == 4:
            weights = [w * float(10.0 ** random.integers(-12, 12)) for w in weights]
        elif event == 5:
            weights[0] = torch.where(weights[0].abs() > 0.7, weights[0], 0.0)
        elif event == 6:
            weights[1] = torch.full_like(weights[1], 0.123)
        elif event == 7:
            weights = [torch.randn(w.shape, generator=generator) for w in weights]
        else:
            costs = None if costs else [3, 500]
        sparsity = float(np.clip(sparsity + random.normal(0, 0.1), 1e-6, 1 - 1e-6))
        if event in (2, 8):
            sparsity = float(random.uniform(1e-6, 1 - 1e-6))
        found = finder.find(weights, scales, sparsity, costs).item()
        if costs:
            assert found == by_cost(weights, scales, sparsity, costs)
        else:
            assert found == by_sorting(weights, scales, sparsity)


@pytest.mark.slow
def test_in_a_training_it_reads_the_weights_once_a_step() -> None:
    finder, generator = GlobalThreshold(), seeded(5)
    weights = [
        torch.randn(256, 150, generator=generator),
        torch.randn(99, 250, generator=generator),
    ]
    passes = []
    for step in range(1, 101):
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.002)
        sparsity = 0.9 * (1 - (1 - step / 100) ** 3)
        before = finder.passes
        assert finder.find(weights, [1.0, 0.6], sparsity).item() == by_sorting(
            weights, [1.0, 0.6], sparsity
        )
        passes.append(finder.passes - before)
    assert passes[10:] == [1] * 90
    assert max(passes) <= 3


@pytest.mark.parametrize("where", [0, 123, -1])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_nan_is_enough(where: int, sparsity: float, dtype: torch.dtype) -> None:
    weights = [torch.randn(70, 30), torch.randn(40, 80).to(dtype)]
    finder = GlobalThreshold()
    finder.find(weights, [1.0, 1.0], sparsity)
    weights[1].view(-1)[where] = float("nan")
    for search in (finder, GlobalThreshold()):
        with pytest.raises(StateError, match="some weights are NaN: the training has diverged"):
            search.find(weights, [1.0, 1.0], sparsity)
    weights[1].view(-1)[where] = 0.0  # mended, it goes on
    expected = by_sorting(weights, [1.0, 1.0], sparsity)
    assert finder.find(weights, [1.0, 1.0], sparsity).item() == expected


def test_infinite_weights_are_the_largest() -> None:
    weights = [torch.randn(40, 25), torch.randn(10, 10)]
    weights[0][0, :5] = float("inf")
    weights[1][0, 0] = -float("inf")
    for sparsity in (0.3, 0.9, 0.99):
        expected = by_sorting(weights, [1.0, 0.5], sparsity)
        assert GlobalThreshold().find(weights, [1.0, 0.5], sparsity).item() == expected
    finder = GlobalThreshold()
    for _ in range(2):  # the second time from what the first has left
        with pytest.raises(StateError, match="some weights are infinite"):
            finder.find([torch.full((3, 3), math.inf)], [1.0], 0.5)


def test_without_weights_there_is_no_threshold() -> None:
    for weights in ([], [torch.empty(0, 3)]):
        with pytest.raises(StateError, match="no weight to find a threshold over"):
            GlobalThreshold().find(weights, [1.0] * len(weights), 0.5)


@pytest.mark.parametrize("costs", [None, [5, 1, 300, 2]])
def test_it_names_the_sites_that_it_empties(costs: Any) -> None:
    finder, generator = GlobalThreshold(), seeded(6)
    sizes = [1.0, 0.01, 0.5, 0.1]
    weights = [size * torch.rand(40, 40, generator=generator) for size in sizes]
    weights[3] = torch.zeros(4, 4)
    for sparsity in (0.001, 0.2, 0.5, 0.3, 0.75, 0.99, 0.4):
        level = finder.find(weights, [1.0] * 4, sparsity, costs).item()
        assert finder.empty == [i for i, w in enumerate(weights) if w.abs().max().item() <= level]


class Sizes(TorchDispatchMode):
    """The largest tensor that operators make, views apart."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [t.numel() for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
            self.largest = max([self.largest, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_of_the_weights_is_made(dtype: torch.dtype) -> None:
    """4 million weights are 16 MB in single precision; what is collected is 1 % of them."""
    weights = [
        torch.randn(1000, 2000, generator=seeded(7)).to(dtype),
        torch.randn(100, 100, 10, 20, generator=seeded(8)).to(dtype)
        .contiguous(memory_format=torch.channels_last),
    ]  # fmt: skip
    finder = GlobalThreshold()
    with Sizes() as sizes:
        finder.find(weights, [1.0, 0.5], 0.5)
        tracemalloc.start()
        try:
            sizes.largest = 0
            finder.find(weights, [1.0, 0.5], 0.505)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sizes.largest <= BLOCK
    assert peak < 3e6


def test_threads_give_the_same_result() -> None:
    weights = [torch.randn(700, 1000, generator=seeded(9)), torch.randn(10, 10)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(GlobalThreshold().find(weights, [1.0, 0.3], 0.77).item())
    finally:
        torch.set_num_threads(before)
    assert results == [by_sorting(weights, [1.0, 0.3], 0.77)] * 4
