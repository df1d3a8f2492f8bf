"""Branches on the data of a call's integers: a graph for one answer, looked at in each call."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.graphs.calls import CallSpec
from tests.parity import check, require_same, step
from tests.passes.trace.test_values import applies

TOKENS = torch.arange(15).view(3, 5) % 9
FULL = torch.ones(3, 5, dtype=torch.int64)
GAP = FULL.clone()
GAP[0, -1] = 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.fc = nn.Linear(6, 6)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        return self.body(self.fc(self.embed(tokens)), mask)

    def body(self, x: Any, mask: Any) -> Any:
        raise NotImplementedError


class Padding(Net):
    """As libraries of transformers do it: without a gap there is no mask."""

    def body(self, x: Any, mask: Any) -> Any:
        mask = mask.to(device=x.device, dtype=torch.bool)
        return x if mask.all() else x.masked_fill(~mask[..., None], 0)


class Longest(Net):
    """A number from the data becomes a size."""

    def body(self, x: Any, mask: Any) -> Any:
        return x[:, : int(mask.sum(1).max())]


class Chosen(Net):
    """The number of rows depends on the data."""

    def body(self, x: Any, mask: Any) -> Any:
        rows = mask.sum(1).eq(mask.shape[1]).nonzero()
        return x[rows[:, 0]] if len(rows) < x.shape[0] else -x


class OfSizesToo(Net):
    """Sizes of an activation beside the data of an argument."""

    def body(self, x: Any, mask: Any) -> Any:
        return x * 2 if mask.sum() == x.shape[0] * x.shape[1] else x


class Both(Net):
    """Operators whose names end as those of writing methods do."""

    def body(self, x: Any, mask: Any) -> Any:
        return x if ((mask > 0) & (mask < 2)).all() else -x


class Counted(Net):
    """Counts that are added up, as in torch's AdaptiveLogSoftmaxWithLoss: nothing is written to."""

    def body(self, x: Any, mask: Any) -> Any:
        rows = 0
        for position in range(mask.shape[1]):
            rows += mask[:, position].nonzero().squeeze(-1).numel()
        return x if rows == mask.numel() else -x


KINDS = [Padding, Longest, Chosen, OfSizesToo, Both, Counted]


@pytest.mark.parametrize("recorded", [GAP, FULL], ids=["gap", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_and_the_same_answer_for_every_call(kind: type[Net], recorded: Tensor) -> None:
    original = kind()
    checked = check(original, (TOKENS, recorded))
    assert list(checked.islands) == [""]
    original.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    wide = TOKENS.repeat(1, 2)
    short = GAP.clone()
    short[:, 2:] = 0
    calls = [(TOKENS, m) for m in (GAP, FULL, short, GAP)]
    for args in [*calls, (wide, GAP.repeat(1, 2)), (TOKENS[:1], GAP[:1]), (TOKENS, GAP.bool())]:
        require_same(step(original, args, {}, 0), step(checked.model, args, {}, 0), str(args))


def test_the_graph_serves_calls_with_the_same_answer() -> None:
    model, sparsifier = st3fx.convert(Padding(), (TOKENS, GAP))
    elsewhere = FULL.clone()
    elsewhere[2, 0] = 0
    assert applies(model, TOKENS, elsewhere)
    assert applies(model, TOKENS[:, 1:], GAP[:, 1:])
    assert not applies(model, TOKENS, FULL)
    assert not applies(model, TOKENS[:, :4], GAP[:, :4])
    (guard,) = sparsifier.plan.islands[0].guards
    assert "mask.to(" in guard
    assert ").all() is False (test_data.py:" in guard
    assert guard.endswith("looked at in each call")


def test_no_size_is_read_from_the_data_of_a_call_of_the_same_shape() -> None:
    """The first decision for a shape must not stand for other data."""
    model, _ = st3fx.convert(Longest(), (TOKENS, GAP))
    three = GAP.clone()
    three[:, 3:] = 0
    assert [applies(model, TOKENS, mask) for mask in (three, GAP, three, FULL)] == [
        False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_guards_survive_copies(copied: Any) -> None:
    model, _ = st3fx.convert(Padding(), (TOKENS, GAP))
    model(TOKENS, GAP)
    twin = copied(model)
    assert applies(twin, TOKENS, GAP)
    assert not applies(twin, TOKENS, FULL)


def test_a_converted_model_keeps_no_data_of_its_example() -> None:
    model, _ = st3fx.convert(Padding(), (TOKENS, GAP))
    assert CallSpec(Padding(), (TOKENS, GAP), {}).readable
    assert not model.__dict__["st3fx_forward"].variants[0].spec.readable


class Shows(nn.Module):
    """A part without weights that is given the mask, and leaves it alone."""

    def forward(self, mask: Tensor) -> Any:
        return mask.sum(1, keepdim=True)[..., None]


class ReadByAModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.shows = Shows()

    def body(self, x: Any, mask: Any) -> Any:
        return x * self.shows(mask) if mask.all() else -x


def test_a_module_that_reads_a_mask_does_not_write_to_it() -> None:
    model, _ = st3fx.convert(ReadByAModule(), (TOKENS, GAP), verify=False)
    assert applies(model, TOKENS, GAP)
    assert applies(model, TOKENS[:1], GAP[:1])


class Floats(Net):
    def body(self, x: Any, mask: Any) -> Any:
        return x if (mask.float() * x[..., 0]).sum() > 0 else -x


class Written(Net):
    """The mask is another one when it is asked."""

    def body(self, x: Any, mask: Any) -> Any:
        mask[:, :1].fill_(0)
        return x if mask.all() else -x


class WrittenCopy(Net):
    def body(self, x: Any, mask: Any) -> Any:
        ones = torch.ones(x.shape[1], dtype=torch.int64)
        ones[1:].copy_(mask[0, 1:])
        return x if ones.all() else -x


class Random(Net):
    def body(self, x: Any, mask: Any) -> Any:
        drawn = torch.randint(0, 2, mask.shape)
        return x if (mask * drawn).sum() > 3 else -x


class Marks(nn.Module):
    def forward(self, mask: Tensor) -> Any:
        mask[:, 0] = 0
        return mask


class WrittenByAModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.marks = Marks()

    def body(self, x: Any, mask: Any) -> Any:
        self.marks(mask)
        return x if mask.all() else -x


@pytest.mark.parametrize("kind", [Floats, Written, WrittenCopy, Random, WrittenByAModule])
def test_other_data_stop_the_trace(kind: type[Net]) -> None:
    original = kind()
    model, sparsifier = st3fx.convert(original, (TOKENS, FULL.clone()), verify=False)
    reasons = {module.name: module.reason for module in sparsifier.plan.opaque}
    assert "branches on a tensor's data at test_data.py:" in reasons[""]
    torch.manual_seed(0)
    expected = original(TOKENS, FULL.clone())
    torch.manual_seed(0)
    assert torch.equal(model(TOKENS, FULL.clone()), expected)


def test_a_large_tensor_is_not_looked_at() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor, table: Tensor) -> Any:
            return self.fc(x) if table.any() else -self.fc(x)

    table = torch.zeros(1 << 22, dtype=torch.bool)
    x = torch.ones(2, 6)
    _, sparsifier = st3fx.convert(Sums(), (x, table), verify=False)
    assert sparsifier.plan.islands[0].name == ""
    _, sparsifier = st3fx.convert(Sums(), (x, table.repeat(2)), verify=False)
    assert "branches on a tensor's data" in sparsifier.plan.opaque[0].reason


def test_without_data_the_module_keeps_its_own_forward() -> None:
    """Under fake tensors a graph would not know whether it applies."""
    model, _ = st3fx.convert(Padding(), (TOKENS, GAP))
    assert not applies(model, TOKENS.to("meta"), GAP.to("meta"))


def test_a_jit_trace_gets_the_models_own_forward() -> None:
    model, _ = st3fx.convert(Longest(), (TOKENS, GAP))
    seen = []

    class Around(nn.Module):
        def forward(self, tokens: Tensor, mask: Tensor) -> Any:
            seen.append(applies(model, tokens, mask))
            return tokens

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        torch.jit.trace(Around(), (TOKENS, GAP), check_trace=False)
    assert seen == [False]
