"""Radix selection against the host's search: the same bits."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from st3fx.sparsity import gpu
from st3fx.sparsity.threshold.radix import CHUNK, Group, chunk_table, next_score, quantile, select
from st3fx.sparsity.threshold.search import GlobalThreshold, global_threshold

FRACTIONS = (0.001, 0.5, 0.9, 0.99999)


def alone(tensors: list[Tensor], scales: list[float], costs: list[int] | None = None) -> Group:
    costs = [1] * len(tensors) if costs is None else costs
    return Group(chunk_table(tensors, scales, costs), lambda counts, how: None)


def weights(kind: str) -> list[Tensor]:
    shapes = [(40, 50), (7,), (3, CHUNK // 2)]
    tensors = [torch.randn(shape) for shape in shapes]
    if kind == "ties":
        return [tensor.round(decimals=1) for tensor in tensors]
    if kind == "zeros":
        return [torch.where(tensor.abs() < 1, 0.0, tensor) for tensor in tensors]
    if kind == "equal":
        return [torch.full(shape, -0.25) for shape in shapes]
    if kind == "small":
        return [
            tensor * 10.0 ** random.Random(i).uniform(-35, 0) for i, tensor in enumerate(tensors)
        ]
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "equal", "small"])
def test_the_quantile_is_the_hosts(kind: str) -> None:
    tensors, scales = weights(kind), [1.0, 0.3, 0.7]
    group = alone(tensors, scales)
    total = sum(tensor.numel() for tensor in tensors)
    for fraction in FRACTIONS:
        expected = global_threshold(tensors, scales, fraction)
        assert torch.equal(quantile([group], total, fraction), expected)


@pytest.mark.slow
def test_parts_in_several_processes_are_added_up() -> None:
    tensors = weights("ties")
    whole = alone(tensors, [1.0] * 3)
    # Two groups stand for two processes' parts: their counts are summed like reduced ones.
    parts = [alone(tensors[:1], [1.0]), alone(tensors[1:], [1.0, 1.0])]
    total = sum(tensor.numel() for tensor in tensors)
    for fraction in FRACTIONS:
        assert torch.equal(quantile(parts, total, fraction), quantile([whole], total, fraction))


def test_reductions_see_every_count() -> None:
    seen: list[tuple[str, int]] = []

    def reduce(tensor: Tensor, how: str) -> None:
        seen.append((how, tensor.numel()))
        if how == "sum":
            tensor.mul_(2)  # another process with the same weights

    tensors = weights("random")
    total = sum(tensor.numel() for tensor in tensors)
    doubled = Group(chunk_table(tensors, [1.0] * 3, [1] * 3), reduce)
    expected = global_threshold(tensors * 2, [1.0] * 6, 0.9)
    assert torch.equal(quantile([doubled], 2 * total, 0.9), expected)
    assert seen == [("sum", 2048), ("sum", 1024), ("sum", 1024), ("min", 1)]


def test_costs_weigh_the_scores() -> None:
    tensors, scales, costs = weights("ties"), [1.0, 1.0, 1.0], [3, 50, 1]
    group = alone(tensors, scales, costs)
    total = sum(t.numel() * cost for t, cost in zip(tensors, costs, strict=True))
    for share in (0.1, 0.5, 0.95):
        bits, upto, equal = select([group], max(1, int(total * share)))
        score = bits.view(torch.float32).item()
        below = sum(int((t.abs() < score).sum()) * c for t, c in zip(tensors, costs, strict=True))
        here = sum(int((t.abs() <= score).sum()) * c for t, c in zip(tensors, costs, strict=True))
        assert below < int(total * share) <= here
        assert (upto.item(), equal.item()) == (here, here - below)
        expected = GlobalThreshold().find(tensors, scales, int(total * share) / total, costs)
        assert score == expected.item()


def test_above_the_largest_there_is_none() -> None:
    tensors = weights("random")
    largest = max(tensor.abs().max() for tensor in tensors).reshape(()).view(torch.int32)
    assert next_score([alone(tensors, [1.0] * 3)], largest).item() == 0x7FFFFFFF


def test_the_table_follows_the_memory() -> None:
    weight = torch.randn(2 * CHUNK + 5)
    table = chunk_table([weight], [1.0], [1])
    assert table[:, 1].tolist() == [CHUNK, CHUNK, 5]
    assert table[:, 0].tolist() == [weight.data_ptr() + 4 * CHUNK * i for i in range(3)]
    assert chunk_table([weight], [1.0], [1]) is table
    assert chunk_table([weight[5:]], [1.0], [1])[0, 0].item() == weight.data_ptr() + 20


def test_the_finder_takes_the_kernels_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, scales, costs = weights("ties"), [1.0, 0.3, 0.7], [3, 50, 1]
    tensors[0] = tensors[0].t()  # memory in another order
    expected = [GlobalThreshold().find(tensors, scales, 0.9, c) for c in (None, costs)]
    monkeypatch.setattr(gpu, "available", lambda device: True)
    finder = GlobalThreshold()
    actual = [finder.find(tensors, scales, 0.9, c) for c in (None, costs)]
    assert all(torch.equal(*pair) for pair in zip(expected, actual, strict=True))
    assert finder.passes == 0  # the host counted nothing


def test_ties_are_split_as_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that does not wait splits them from the search after the first that meets them."""
    random, equal = [torch.randn(40, 30)], [torch.randint(1, 4, (40, 30)) * 0.25]
    host = GlobalThreshold()
    expected = host.find(equal, [1.0], 0.6)
    monkeypatch.setattr(gpu, "available", lambda device: True)
    finder = GlobalThreshold()
    assert torch.equal(finder.find(equal, [1.0], 0.6, wait=False), expected)  # the first one waits
    assert torch.equal(finder.ties[0], host.ties[0])
    finder.find(random, [1.0], 0.6, wait=False)
    assert not finder.ties
    finder.find(equal, [1.0], 0.6, wait=False)
    assert not finder.ties  # not yet
    finder.find(equal, [1.0], 0.6, wait=False)
    assert torch.equal(finder.ties[0], host.ties[0])
    finder.find(random, [1.0], 0.6)
    finder.find(equal, [1.0], 0.6)
    assert torch.equal(finder.ties[0], host.ties[0])
