"""Several example calls: what any of them shows counts, and each is verified."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import InputError, VerificationError
from tests.parity import require_same, snapshot

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
Call = st3fx.Call


class Tasks(nn.Module):
    """Two heads, of which a call takes one, and a third for other code."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2))
        self.classes, self.value, self.embed = nn.Linear(8, 4), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor, task: str = "classes") -> Any:
        y = self.body(x).relu()
        return self.classes(y) if task == "classes" else self.value(y)

    def encode(self, x: Tensor) -> Any:
        return self.embed(self.body(x))


CALLS: dict[str, tuple[Any, set[str]]] = {
    "one": (Call(X), {"body.0", "classes"}),
    "two tasks": ([Call(X), Call(X, task="value")], {"body.0", "classes", "value"}),
    "by position": ([Call(X), (X, "value")], {"body.0", "classes", "value"}),
    "as dicts": ([{"x": X}, Call(x=X, task="value")], {"body.0", "classes", "value"}),
    "a method": ([X, Call(X, method="encode")], {"body.0", "classes", "embed"}),
    "a method alone": (Call(X, method="encode"), {"body.0", "embed"}),
    "a method of a part": (
        [Call(X), Call(X, method="value.forward")],
        {"body.0", "classes", "value"},
    ),
}


@pytest.mark.parametrize("case", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("verify", [True, False])
def test_sites_are_the_union(case: Any, verify: bool) -> None:
    calls, names = case
    model = Tasks()
    before = snapshot(model)
    converted, sparsifier = st3fx.convert(model, calls, verify=verify)
    require_same(before, snapshot(model), "the given model")
    assert {site.name for site in sparsifier.plan.sites} == {f"{name}.weight" for name in names}
    sparsifier.set_sparsity(0.5)
    oracle = copy.deepcopy(model).eval()
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    sparse: Any = converted.eval()
    require_same(oracle(X), sparse(X), "a task")
    require_same(oracle(X, task="value"), sparse(X, task="value"), "another task")
    require_same(oracle.encode(X), sparse.encode(X), "a method")


def test_each_task_has_its_graph() -> None:
    plan = st3fx.convert(Tasks(), [Call(X), Call(X, task="value")])[1].plan
    assert [island.name for island in plan.islands] == [""]
    assert len(plan.islands[0].modes) == 2
    costs = {site.name: site.cost for site in plan.sites}
    assert costs == {"body.0.weight": 8, "classes.weight": 4, "value.weight": 4}


class Stateful(nn.Module):
    """Keeps what its last call has left there, another for each size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.size, self.table = nn.Linear(8, 8), 0, torch.zeros(0)

    def forward(self, x: Tensor) -> Any:
        if self.size != x.shape[1]:
            self.size, self.table = x.shape[1], torch.arange(x.shape[1])[:, None].float()
        return self.fc(x) + self.table


def test_what_a_call_leaves_is_its_own() -> None:
    series, longer = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    model = Stateful()
    converted, sparsifier = st3fx.convert(model, [Call(series), Call(longer)])
    assert sparsifier.plan.verified
    for x in (series, longer, series):
        require_same(model(x), converted(x), "output")


@pytest.mark.parametrize("number", [0, 1])
def test_each_call_is_verified(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle: a graph that is wrong for one of the calls alone is found."""
    calls = [Call(X), Call(X, task="value")]
    differs: Callable[..., Any] = st3fx.passes.convert.verify.differs  # type: ignore[attr-defined]

    def spoiled(subject: Any, trial: Any) -> Any:
        if subject.example.kwargs == calls[number].kwargs:
            subject.forwards[0].variants = [_Wrong()]
        return differs(subject, trial)

    monkeypatch.setattr("st3fx.passes.convert.verify.differs", spoiled)
    with pytest.raises(VerificationError, match="differs"):
        st3fx.convert(Tasks(), calls)


class _Wrong:
    """A graph that gives something else."""

    def tensors(self, args: Any, kwargs: Any) -> Any:
        return [args[0]]

    def __call__(self, tensors: Any) -> Any:
        return tensors[0] * 0


def test_a_list_without_a_call_is_one_argument() -> None:
    with pytest.raises(InputError, match=r"several calls are a list of st3fx\.Call"):
        st3fx.convert(Tasks(), [(X,), (X, "value")])


def test_a_dict_is_one_argument_where_its_keys_are_no_names() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, batch: dict[str, Tensor]) -> Any:
            return self.fc(batch["x"])

    converted, _ = st3fx.convert(Reads(), {"x": X})
    assert converted({"x": X}).shape == (4, 4)
    assert st3fx.count_flops(converted, {"x": X}).dense_macs == 4 * 8 * 4
    with pytest.raises(InputError, match="the dict is one argument of it"):
        st3fx.convert(nn.Linear(8, 4), {"y": X})


def test_a_packed_sequence_is_one_argument() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 4)

        def forward(self, sequence: Any) -> Any:
            return self.rnn(sequence)[0].data

    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 8), torch.randn(2, 8)])
    model = Recurrent()
    converted, sparsifier = st3fx.convert(model, packed)
    assert len(sparsifier.plan.sites) == 2
    require_same(model(packed), converted(packed), "output")


class Sampler(nn.Module):
    """A generator and a coroutine that multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8) * 0.3)

    def forward(self, x: Tensor) -> Any:
        return self.first(x)

    def steps(self, x: Tensor) -> Any:
        for _ in range(2):
            x = self.first(x) @ self.second
            yield x

    async def later(self, x: Tensor) -> Any:
        return x @ self.second


def test_a_generator_is_run_to_its_end() -> None:
    converted, sparsifier = st3fx.convert(Sampler(), Call(X, method="steps"))
    model: Any = converted
    assert {site.name for site in sparsifier.plan.sites} == {"first.weight", "second"}
    sparsifier.set_sparsity(0.5)
    folded: Any = st3fx.fold(model)
    require_same(list(model.steps(X)), list(folded.steps(X)), "steps")


def test_a_coroutine_is_refused() -> None:
    with pytest.raises(InputError, match="later of Sampler is asynchronous"):
        st3fx.convert(Sampler(), Call(X, method="later"))
