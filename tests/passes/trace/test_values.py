"""What code reads from sizes, lengths and types: one graph where it holds, the same answer always.

Each model is converted with one call and called in other ways, which its graph must not answer.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import check, require_same, step

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(3, 5, 6, generator=GENERATOR)


def like(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.out(self.body(*args, **kwargs))

    def body(self, x: Any, *more: Any) -> Any:
        raise NotImplementedError


class OnBatch(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x) if x.shape[0] > 2 else -self.fc(x)


class OnLength(Two):
    def body(self, x: Any, *more: Any) -> Any:
        y = self.fc(x)
        return y.mean(1) if y.size(1) % 2 else y.sum(1)


class OnRank(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x) if x.dim() == 3 else self.fc(x.unsqueeze(0)).squeeze(0) * 2


class OnDtype(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x if x.dtype == torch.float32 else x.float() * 3)


class OnCount(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return sum(self.fc(part) * len(x) for part in x)


class Rows(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return torch.stack([self.fc(row) * (index + 1) for index, row in enumerate(x)])


class Windows(Two):
    """``range`` over a size, slices of a computed length."""

    def body(self, x: Any, *more: Any) -> Any:
        half = int(x.shape[1] / 2)
        return torch.cat([self.fc(x[:, i : i + half]) for i in range(x.shape[1] - half)], 1)


class Length(Two):
    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x) * len(x) / len(x.shape)


class Starred(Two):
    def body(self, x: Any, *more: Any) -> Any:
        first, *rest = x.shape
        return self.fc(x).reshape(first * rest[0], *rest[1:])


class Lookup(Two):
    """A size as the key of a dict."""

    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x) * {5: 2.0, 7: 3.0}.get(x.shape[1], 1.0)


class Isinstance(Two):
    def body(self, x: Any, *more: Any) -> Any:
        y = more[0] if more else None
        if isinstance(x, tuple | list):
            x = x[0] + 1
        z = self.fc(x)
        return z if y is None else z + (y if isinstance(y, Tensor) and torch.is_tensor(z) else 0.0)


class Padded(Two):
    """Pads to a multiple, as windowed attention does."""

    def body(self, x: Any, *more: Any) -> Any:
        missing = (4 - x.shape[1] % 4) % 4
        if missing > 0:
            x = F.pad(x, (0, 0, 0, missing))
        return self.fc(x).view(x.shape[0], -1, 4, 6).mean(2)


class Assigns(Two):
    """Writes into a tensor that it made of another size."""

    def body(self, x: Any, *more: Any) -> Any:
        y = torch.zeros(x.shape[0], x.shape[1] + 1, 6, device=x.device, dtype=x.dtype)
        y[:, 1:] = self.fc(x)
        y[:, 0] = 1
        return y


class Causal(Two):
    """Branches on data that are made of sizes alone."""

    def body(self, x: Any, *more: Any) -> Any:
        positions = torch.arange(x.shape[1]).unsqueeze(0)
        mask = positions >= positions.transpose(0, 1)
        y = self.fc(x)
        return -y if mask.all() else y + positions.max().item()


class OwnDtype(Two):
    """Asks its parameters, as ``model.dtype`` and ``model.device`` do."""

    def body(self, x: Any, *more: Any) -> Any:
        dtype = next(p.dtype for p in self.parameters() if p.is_floating_point())
        return self.fc(x.to(dtype)) * torch.finfo(dtype).eps


CALLS: dict[type[Two], tuple[Any, list[Any]]] = {
    OnBatch: (X, [like(1, 5, 6), like(7, 5, 6), like(0, 5, 6)]),
    OnLength: (X, [like(3, 4, 6), like(3, 7, 6), like(2, 5, 6)]),
    OnRank: (X, [like(5, 6), like(1, 1, 6)]),
    OnDtype: (X, [X.double(), X.half()]),
    OnCount: (([X, X + 1],), [([X],), ([X, X, X],), ([],)]),
    Rows: (X, [like(1, 5, 6), like(4, 2, 6)]),
    Windows: (X, [like(3, 8, 6), like(2, 2, 6)]),
    Length: (X, [like(4, 5, 6), like(2, 6)]),
    Starred: (X, [like(4, 2, 6)]),
    Lookup: (X, [like(3, 7, 6), like(3, 4, 6)]),
    Isinstance: (X, [([X],), (X, X), (X, 2.0)]),
    Padded: (X, [like(3, 8, 6), like(3, 6, 6), like(1, 1, 6)]),
    Assigns: (X, [like(1, 9, 6)]),
    Causal: (X, [like(3, 1, 6), like(3, 9, 6)]),
    OwnDtype: (X, [like(1, 1, 6)]),
}


def as_args(call: Any) -> tuple[Any, ...]:
    return call if isinstance(call, tuple) else (call,)


def outcome(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except (TypeError, RuntimeError, ValueError) as error:
        return type(error).__name__


@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: kind.__name__)
def test_one_graph_and_the_same_answer_for_every_call(kind: type[Two]) -> None:
    recorded, others = CALLS[kind]
    original = kind()
    checked = check(original, as_args(recorded))
    assert list(checked.islands) == [""]
    assert checked.sites == ["fc.weight", "out.weight"]
    original.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    for call in [*others, recorded, *others]:
        args = as_args(call)
        for training in (True, False):
            expected = outcome(lambda: original.train(training)(*args))  # noqa: B023
            actual = outcome(lambda: checked.model.train(training)(*args))  # noqa: B023
            require_same(expected, actual, f"{kind.__name__} {args}")
        if not isinstance(expected, str) and expected.numel() and expected.dtype == X.dtype:
            require_same(step(original, args, {}, 0), step(checked.model, args, {}, 0), "training")


def applies(model: nn.Module, *args: Any) -> bool:
    return model.__dict__["st3fx_forward"].variants[0].tensors(args, {}) is not None


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        (OnBatch, [like(3, 9, 6), like(8, 5, 6)], [like(2, 5, 6), like(1, 5, 6)]),
        (OnLength, [like(9, 7, 6), like(1, 1, 6)], [like(3, 4, 6)]),
        (OnRank, [like(1, 2, 6)], [like(5, 6)]),
        (OnDtype, [like(9, 9, 6)], [X.double()]),
        (Rows, [like(3, 9, 6)], [like(4, 5, 6)]),
        (Padded, [like(9, 7, 6), like(1, 1, 6)], [like(3, 8, 6)]),
        (Assigns, [like(1, 9, 6), like(4, 1, 6)], []),
        (Starred, [like(4, 1, 6)], []),
        (Causal, [like(2, 9, 6)], [like(3, 1, 6)]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_graph_serves_every_call_for_which_the_answers_hold(
    kind: type[Two], inside: list[Tensor], outside: list[Tensor]
) -> None:
    """Sizes stay free: what the code decided is the guard, not the size that it decided by."""
    model, _ = st3fx.convert(kind(), X, verify=False)
    assert [applies(model, x) for x in inside] == [True] * len(inside)
    assert [applies(model, x) for x in outside] == [False] * len(outside)


@pytest.mark.parametrize("verify", [False, True])
def test_half_precision_is_another_answer(verify: bool) -> None:
    """Nothing of the call changes: a guard on an inner dtype sees the parameter's."""

    class Clamps(Two):
        def body(self, x: Any, *more: Any) -> Any:
            y = self.fc(self.embedding(x))
            return y.clamp(max=0.01) if y.dtype == torch.float16 else y

        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 6)

    ids = torch.arange(6).view(2, 3)
    original = Clamps()
    converted, _ = st3fx.convert(original, ids, verify=verify)
    assert applies(converted, ids)
    original.half()
    converted.half()
    assert not applies(converted, ids)
    require_same(original.eval()(ids), converted.eval()(ids), "half")


def test_a_setting_of_a_called_module_is_part_of_the_answer() -> None:
    class Pools(Two):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AdaptiveAvgPool1d(6)

        def body(self, x: Any, *more: Any) -> Any:
            y = self.pool(self.fc(x))
            return self.fc(y) if y.shape[-1] == 6 else y[..., :6] * 2

    original = Pools()
    converted, _ = st3fx.convert(original, X)
    assert applies(converted, X)
    for model in (original, converted):
        model.get_submodule("pool").output_size = 8  # type: ignore[assignment]
    require_same(original(X), converted(X), "pooled to another size")


class Config:
    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.layers = [1, 2]


class Configured(Two):
    """Reads an object that others change."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config(2.0)

    def body(self, x: Any, *more: Any) -> Any:
        return self.fc(x) * self.config.scale * len(self.config.layers)


@pytest.mark.parametrize("change", ["scale", "layers"])
def test_what_is_read_of_a_configuration_is_a_guard(change: str) -> None:
    original = Configured()
    converted, _ = st3fx.convert(original, X)
    assert applies(converted, X)
    assert "__getattribute__" not in Config.__dict__
    for model in (original, converted):
        config: Any = model.config
        config.layers.append(3) if change == "layers" else setattr(config, "scale", 3.0)
    assert not applies(converted, X)
    require_same(original(X), converted(X), change)


def test_a_configuration_that_the_forward_writes_stops_the_trace() -> None:
    class Counts(Configured):
        def body(self, x: Any, *more: Any) -> Any:
            self.config.scale += 1
            return self.fc(x) * self.config.scale

    converted, sparsifier = st3fx.convert(Counts(), X, verify=False)
    assert "stores Config.scale" in sparsifier.plan.opaque[0].reason
    config: Any = converted.config
    before = config.scale
    converted(X)
    assert config.scale == before + 1


def test_whether_gradients_are_recorded_is_a_guard() -> None:
    class Asks(Two):
        def body(self, x: Any, *more: Any) -> Any:
            return self.fc(x) if torch.is_grad_enabled() else -self.fc(x)

    checked = check(Asks(), X)
    assert list(checked.islands) == [""]
    assert applies(checked.model, X)
    with torch.no_grad():
        assert not applies(checked.model, X)


def test_autocast_is_another_answer() -> None:
    class Casts(Two):
        def body(self, x: Any, *more: Any) -> Any:
            y = self.fc(x)
            return y if y.dtype == torch.float32 else y.float() * 2

    original = Casts()
    converted, _ = st3fx.convert(original, X)
    assert applies(converted, X)
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies(converted, X)
        require_same(original(X), converted(X), "under autocast")


@dataclasses.dataclass
class Output:
    logits: Tensor
    extra: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Any


class GivesNone(nn.Module):
    """Without sites: a call in the graph."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(x * 2, None)


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        (lambda a, b: (a, b), lambda out: out[1]),
        (lambda a, b: {"a": a, "b": b}, lambda out: out["b"]),
        (lambda a, b: {"a": a, "b": b}, lambda out: list(out.values())[1]),
        (lambda a, b: {"a": a, "b": b}, lambda out: dict(out.items())["b"]),
        (Pair, lambda out: out.second),
        (Output, lambda out: out.extra),
    ],
    ids=["tuple", "dict", "values", "items", "namedtuple", "dataclass"],
)
def test_none_inside_of_what_a_module_gives(kind: Any, second: Any) -> None:
    class Uses(Two):
        def __init__(self) -> None:
            super().__init__()
            self.part = GivesNone(kind)

        def body(self, x: Any, *more: Any) -> Any:
            found = second(self.part(x))
            return self.fc(x) if found is None else self.fc(found)

    assert list(check(Uses(), X).islands) == [""]


class Kept:
    """As caches of keys and values are: objects in an object."""

    def __init__(self, inner: Kept | None = None) -> None:
        self.inner = inner
        self.kind: type = Kept
        self.tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return torch.stack(self.tensors).sum(0)


class Returns(Two):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kept = Kept(Kept())
        y = kept.add(self.fc(args[0])) + kept.inner.add(args[0])  # type: ignore[union-attr]
        return {"out": self.out(y), "kept": kept}


def test_an_object_that_a_forward_makes_and_returns() -> None:
    model, sparsifier = st3fx.convert(Returns(), X)
    assert [island.name for island in sparsifier.plan.islands] == [""]
    other = like(2, 5, 6)
    assert applies(model, other)
    expected, actual = Returns(), model(other)
    expected.load_state_dict({k: v for k, v in model.state_dict().items() if "st3fx" not in k})
    wanted = expected(other)
    assert torch.equal(actual["out"], wanted["out"])
    kept = actual["kept"]
    assert (type(kept), type(kept.inner), kept.kind) == (Kept, Kept, Kept)
    assert torch.equal(kept.tensors[0], wanted["kept"].tensors[0])
    assert kept.inner.tensors[0] is other
    assert model(other)["kept"] is not kept


def test_an_object_that_was_there_before_stops_the_trace() -> None:
    class Shared(Two):
        def __init__(self) -> None:
            super().__init__()
            self.stores = [Kept()]

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            (kept,) = self.stores
            kept.last = self.out(self.fc(args[0]))  # type: ignore[attr-defined]
            return {"kept": kept, "out": kept.last}  # type: ignore[attr-defined]

    model, sparsifier = st3fx.convert(Shared(), X, verify=False)
    assert "stores Kept.last" in sparsifier.plan.opaque[0].reason
    output = model(X)
    assert output["kept"].last is output["out"]


def test_an_object_as_argument_is_not_captured() -> None:
    """It may change between calls, and a trace would leave proxies in it."""

    class Cache:
        kept: Any = None

    class Keeps(Two):
        def body(self, x: Any, *more: Any) -> Any:
            y, cache = self.fc(x), more[0]
            cache.kept = y if cache.kept is None else cache.kept + y
            return cache.kept

    cache = Cache()
    converted, sparsifier = st3fx.convert(Keeps(), (X, cache), verify=False)
    assert "is given a Cache" in sparsifier.plan.opaque[0].reason
    converted(X, cache)
    assert isinstance(cache.kept, Tensor)


@pytest.mark.parametrize(
    "ask", [lambda y: y.sum() > 0, lambda y: int(y[0, 0, 0]), lambda y: y.max().item() > 1]
)
def test_the_data_of_a_tensor_stop_a_trace(ask: Any) -> None:
    class Branches(Two):
        def body(self, x: Any, *more: Any) -> Any:
            y = self.fc(x)
            return y if ask(y) else -y

    checked = check(Branches(), X)
    assert "" not in checked.islands
    assert "test_values.py:" in checked.opaque[""]


@pytest.mark.parametrize(
    "ask", [lambda y: y.is_contiguous(), lambda y: y.stride(0) > 3, lambda y: y.requires_grad]
)
def test_what_depends_on_memory_or_gradients_stops_a_trace(ask: Any) -> None:
    class Branches(Two):
        def body(self, x: Any, *more: Any) -> Any:
            y = self.fc(x)
            return y if ask(y) else -y

    checked = check(Branches(), X)
    assert "depends on memory or gradients" in checked.opaque[""]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_guards_survive_copies(copied: Any) -> None:
    model, _ = st3fx.convert(OnBatch(), X)
    twin = copied(model)
    assert applies(twin, like(5, 5, 6))
    assert not applies(twin, like(1, 5, 6))
    twin.half()
    assert applies(model, like(5, 5, 6))


def test_the_table_of_decisions_is_bounded() -> None:
    model, _ = st3fx.convert(OnBatch(), X, verify=False)
    for length in range(1, 400):
        assert applies(model, like(3, length, 6))
    guards = model.__dict__["st3fx_forward"].variants[0].spec.guards
    assert len(guards._known) <= 256


class AddsTable(nn.Module):
    """Asks for a size that comes of a sum, which other inputs do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(6, 6), nn.Parameter(torch.zeros(X.shape[1], 1))

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x) + self.table
        return y * 2 if y.shape[1] > 2 else y


def test_a_size_that_the_model_refuses_is_its_own_error_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted, _ = st3fx.convert(AddsTable(), X)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    said: list[logging.LogRecord] = []
    monkeypatch.setattr(logger, "filter", said.append)
    with pytest.raises(RuntimeError, match="must match the size"):
        converted(torch.cat([X, X], 1))
    assert not said
    assert not logger.disabled
