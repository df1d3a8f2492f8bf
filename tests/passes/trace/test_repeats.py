"""A trace is given again only to a module that would be traced to the same."""

from __future__ import annotations

import contextvars
import functools
import itertools
import random
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.graphs.calls import CallSpec
from st3fx.passes.trace import capture
from st3fx.passes.trace.repeats import Repeats
from st3fx.passes.trace.trace import IslandTracer

SETTINGS: dict[str, Any] = {"scale": 1.0}


class Block(nn.Module):
    """Splits by sizes, branches on attributes, and has a submodule that stays a call."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.0)
        self.gain, self.flag = 2.0, False

    def forward(self, x: Tensor) -> Any:
        batch, width = x.shape
        y = self.first(self.norm(x)).reshape(batch, 2, width // 2)
        if self.flag:
            y = y.relu()
        if hasattr(self, "extra"):
            y = y + 1
        return x + self.second(self.drop(y).reshape(batch, width)) * self.gain


def traced(model: nn.Module, *args: Any, repeat: bool = True) -> tuple[list[str], str]:
    """The names of the repeated modules, and everything that a trace gives in words."""
    sites = {name for name, m in model.named_modules() if any(isinstance(i, nn.Linear | nn.LSTMCell)
             for i in m.modules())}  # fmt: skip
    again, kept = Repeats.again, IslandTracer.__init__
    repeated: list[str] = []

    def noting(self: Repeats, begun: Any) -> Any:
        found = again(self, begun)
        repeated.extend([begun.name] if found else [])
        return found

    def make(self: IslandTracer, *given: Any, **named: Any) -> None:
        kept(self, *given, **{"repeat": repeat, **named})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repeats, "again", noting)
        patch.setattr(IslandTracer, "__init__", make)
        found = capture("", model, CallSpec(model, args, {}), sites)
    names = {id(module): name for name, module in model.named_modules()}
    guards = [(names[id(g.module)], g.attribute, repr(g.expected)) for g in found.guards]
    classes = zip(found.definitions._modules, found.definitions._of_class, strict=True)
    words = [
        str(found.graph), *found.spec.words(), *map(str, sorted(guards)), *found.inlined,
        *sorted(f"{names[id(m)]} {sorted(taken)}" for m, taken in classes),
        *[str(node.meta.get("handed")) for node in found.graph.nodes],
    ]  # fmt: skip
    return repeated, "\n".join(words)


def agree(model: nn.Module, *args: Any) -> list[str]:
    """The names of the repeated modules, after a comparison with the trace of each."""
    repeated, words = traced(model, *args)
    assert words == traced(model, *args, repeat=False)[1]
    return repeated


def stack(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(*blocks)


X = torch.zeros(4, 8)


def test_equal_blocks_are_traced_once() -> None:
    repeated = agree(stack(*[Block() for _ in range(5)]), X)
    # The first one is given an argument of the call, the others a value.
    assert {"2", "3", "4"} <= set(repeated)
    assert "1" not in repeated


def _other_number(block: Block) -> None:
    block.gain = 3.0


def _flag(block: Block) -> None:
    block.flag = True


def _hook(block: Block) -> None:
    block.register_forward_hook(lambda *_: None)


def _inner_hook(block: Block) -> None:
    block.second.register_forward_pre_hook(lambda *_: None)


def _forward(block: Block) -> None:
    block.forward = lambda x: x + block.first(x)  # type: ignore[method-assign]


def _attribute_that_others_lack(block: Block) -> None:
    block.__dict__["extra"] = True


def _mode(block: Block) -> None:
    block.drop.eval()


def _width(block: Block) -> None:
    block.first = nn.Linear(8, 8, bias=False)


def _epsilon(block: Block) -> None:
    block.norm.eps = 0.5


def _frozen(block: Block) -> None:
    block.first.weight.requires_grad_(False)


def _sub(block: Block) -> None:
    block.norm = nn.Identity()  # type: ignore[assignment]


CHANGES = [
    _other_number, _flag, _hook, _inner_hook, _forward, _attribute_that_others_lack, _mode, _width,
    _epsilon, _frozen, _sub,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_block_that_differs_is_traced(change: Any) -> None:
    blocks: list[Block] = [Sized() for _ in range(6)]
    change(blocks[4])
    repeated = agree(stack(*blocks), X)
    assert "4" not in repeated
    assert {"2", "3"} <= set(repeated)


def test_a_tied_weight_is_not_another_parameter() -> None:
    blocks = [Block() for _ in range(6)]
    blocks[4].first.weight = blocks[2].first.weight
    repeated = agree(stack(*blocks), X)
    assert "4" not in repeated
    assert {"3", "5"} <= set(repeated)
    _, words = traced(stack(*blocks), X)
    assert "4.first.weight" not in words


def test_a_block_that_is_called_twice() -> None:
    block = Block()
    repeated = agree(stack(block, Block(), block, Block()), X)
    assert {"0", "3"} <= set(repeated)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 8)

    def forward(self, x: Tensor) -> Any:
        h = torch.zeros(x.shape[1], 8)
        c = torch.zeros(x.shape[1], 8)
        for step in range(x.shape[0]):
            h, c = self.cell(x[step], (h, c))
        return h


def test_a_cell_is_traced_for_its_first_steps() -> None:
    assert agree(Cells(), torch.zeros(9, 4, 8)).count("cell") >= 6


class Sized(Block):
    """Branches on a size."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.relu() if x.shape[0] > 3 else x)


class Shrinking(nn.Module):
    """Its blocks are given other shapes."""

    def __init__(self, kind: type[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(6))

    def forward(self, x: Tensor) -> Any:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number > 3:
                x = x[1:]
        return x


def test_other_shapes_are_traced() -> None:
    repeated = agree(Shrinking(Sized), X)
    assert "blocks.4" in repeated
    assert "blocks.5" not in repeated


def test_other_shapes_make_no_difference_where_none_was_asked_for() -> None:
    assert "blocks.5" in agree(Shrinking(Block), X)


class Counting(nn.Module):
    """Its branch depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        global COUNT  # noqa: PLW0603 - it is what a trace must notice
        COUNT += 1
        return self.layer(x) * COUNT


COUNT = 0


def test_code_that_assigns_globals_is_traced() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "COUNT", 0)
        repeated, _ = traced(stack(*[Counting() for _ in range(5)]), X)
    assert not {str(n) for n in range(5)} & set(repeated)


class Noting(nn.Module):
    """Changes a global dict in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        SETTINGS["scale"] = SETTINGS["scale"] + 1.0
        return self.layer(x) * SETTINGS["scale"]


def test_code_that_changes_a_global_dict_is_traced() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETTINGS, "scale", 1.0)
        repeated, words = traced(stack(*[Noting() for _ in range(5)]), X)
    assert not {str(n) for n in range(5)} & set(repeated)
    assert "6.0" in words


class Storing(nn.Module):
    """Keeps what it has computed."""

    last: Any

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.last = None

    def forward(self, x: Tensor) -> Any:
        self.last = self.layer(x)
        return self.last


def test_blocks_that_store_are_traced() -> None:
    assert not {"0", "1", "2", "3"} & set(agree(stack(*[Storing() for _ in range(4)]), X))


class Branching(nn.Module):
    """Its owner tells it what to do."""

    def __init__(self, owner: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.owner = owner

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        owner: Any = self.owner[0]
        return y.relu() if owner.p > 0 else y


def test_blocks_that_read_of_others_are_traced() -> None:
    owners: list[nn.Module] = [nn.Dropout(0.5)]
    model = stack(*[Branching(owners) for _ in range(4)])
    model.owner = owners[0]
    assert not {"0", "1", "2", "3"} & set(agree(model, X))


class Any8(nn.Module):
    """Does what it is told with its layer."""

    def __init__(self, **own: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        for name, value in own.items():
            setattr(self, name, value)


class Handing(nn.Module):
    """Its blocks are given containers beside a tensor, which are new ones at each call or not."""

    def __init__(self, kind: type[nn.Module], make: Callable[[Tensor], Any], fresh: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(5))
        self.make, self.fresh = make, fresh

    def forward(self, x: Tensor) -> Any:
        state = self.make(x)
        for block in self.blocks:
            state = self.make(x) if self.fresh else state
            x = block(x, state)
            x = x + sum(state.values() if isinstance(state, dict) else state)
        return x


class PutsInDict(Any8):
    def forward(self, x: Tensor, state: dict[str, Any]) -> Any:
        state["h"] = self.layer(x) + state["h"]
        return x


class PutsInList(Any8):
    def forward(self, x: Tensor, state: list[Any]) -> Any:
        state.append(self.layer(x))
        return x


class Forgets(Any8):
    def forward(self, x: Tensor, state: dict[str, Any]) -> Any:
        state["h"] = 0
        return self.layer(x)


@pytest.mark.parametrize(
    ("kind", "make", "fresh"),
    [
        (PutsInDict, lambda x: {"h": x * 2}, False),
        (PutsInList, lambda _: [], True),
        (Forgets, lambda _: {"h": 1}, True),
    ],
)
def test_blocks_that_change_what_they_are_given_are_traced(
    kind: Any, make: Any, fresh: bool
) -> None:
    assert not {f"blocks.{n}" for n in range(5)} & set(agree(Handing(kind, make, fresh), X))


class GivesBack(Any8):
    def forward(self, x: Tensor, state: dict[str, Any]) -> Any:
        return x + self.layer(x) * state["h"], state


class Renaming(nn.Module):
    """Changes what its blocks give, which is what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GivesBack() for _ in range(5))

    def forward(self, x: Tensor) -> Any:
        state = {"h": x}
        for block in self.blocks:
            x, same = block(x, state)
            same["h"] = x
        return x


def test_blocks_that_give_back_what_they_are_given_are_traced() -> None:
    assert not {f"blocks.{n}" for n in range(5)} & set(agree(Renaming(), X))


class Settings:
    layer = 0

    def __init__(self) -> None:
        self.layer = 0


class Slotted:
    __slots__ = ("layer",)

    def __init__(self) -> None:
        self.layer = 0


class Numbered(Any8):
    settings: Any

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * (self.settings.layer + 1)


class Numbering(nn.Module):
    """Tells its blocks by an object which one they are, and sets it back."""

    def __init__(self, settings: Any, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = nn.ModuleList(make() for _ in range(5))

    def forward(self, x: Tensor) -> Any:
        for number, block in enumerate(self.blocks):
            self.settings.layer = number
            x = block(x)
        self.settings.layer = 0
        return x


@pytest.mark.parametrize("make", [Settings, Slotted, lambda: types.SimpleNamespace(layer=0)])
def test_an_object_that_changes_between_blocks(make: Any) -> None:
    settings = make()
    repeated = agree(Numbering(settings, lambda: Numbered(settings=settings)), X)
    assert not {f"blocks.{n}" for n in range(5)} & set(repeated)


GLOBAL_SETTINGS, GLOBAL_SLOTS = Settings(), Slotted()


class OfGlobal(Any8):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * (GLOBAL_SETTINGS.layer + GLOBAL_SLOTS.layer + 1)


@pytest.mark.parametrize("settings", [GLOBAL_SETTINGS, GLOBAL_SLOTS])
def test_a_global_object_that_changes_between_blocks(settings: Any) -> None:
    assert not {f"blocks.{n}" for n in range(5)} & set(agree(Numbering(settings, OfGlobal), X))


NUMBER_OF_BLOCK = contextvars.ContextVar("number", default=0)
CYCLE = itertools.cycle(range(1, 6))
TABLE: dict[str, Any] = {str(n): n for n in range(100)}


class OfContext(Any8):
    def forward(self, x: Tensor) -> Any:
        NUMBER_OF_BLOCK.set((NUMBER_OF_BLOCK.get() + 1) % 5)
        return self.layer(x) * (NUMBER_OF_BLOCK.get() + 1)


class OfCycle(Any8):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * next(CYCLE)


class OfTable(Any8):
    def forward(self, x: Tensor) -> Any:
        TABLE["1"] = TABLE["1"] % 5 + 1
        return self.layer(x) * TABLE["1"]


class OfDefault(Any8):
    def forward(self, x: Tensor, kept: dict[str, int] = {"n": 0}) -> Any:  # noqa: B006
        kept["n"] = kept["n"] % 5 + 1
        return self.layer(x) * kept["n"]


class OfClass(Any8):
    number = 0

    def forward(self, x: Tensor) -> Any:
        type(self).number = type(self).number % 5 + 1
        return self.layer(x) * type(self).number


def _counted(x: Any) -> Any:
    _counted.calls = _counted.calls % 5 + 1  # type: ignore[attr-defined]
    return x * _counted.calls  # type: ignore[attr-defined]


_counted.calls = 0  # type: ignore[attr-defined]


class OfFunction(Any8):
    def forward(self, x: Tensor) -> Any:
        return _counted(self.layer(x))


def _closure() -> Any:
    kept = [0]

    def scaled(x: Any) -> Any:
        kept[0] = kept[0] % 5 + 1
        return x * kept[0]

    return scaled


CLOSURE = _closure()


class OfAttribute(Any8):
    scaled: Any

    def __init__(self) -> None:
        super().__init__(scaled=CLOSURE)

    def forward(self, x: Tensor) -> Any:
        return self.scaled(self.layer(x))


@pytest.mark.parametrize(
    "kind",
    [OfContext, OfCycle, OfTable, OfDefault, OfClass, OfFunction, OfAttribute],
)
def test_code_that_counts_its_calls_is_traced(kind: Any) -> None:
    assert not {str(n) for n in range(5)} & set(agree(stack(*[kind() for _ in range(5)]), X))


class ReadsVars(Any8):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * vars(self)["gain"]


class ReadsPast(Any8):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * object.__getattribute__(self, "gain")


class HasSlot(Any8):
    __slots__ = ("gain",)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * self.gain


class Caches(Any8):
    @functools.lru_cache(None)  # noqa: B019
    def scale(self) -> Any:
        return self.gain

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * self.scale()


class Word(str):  # noqa: SLOT000 - it has an attribute of its own
    layer = 0


def _word(layer: int) -> Word:
    word = Word("word")
    word.layer = layer
    return word


class HasWord(Any8):
    gain: Any

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * self.gain.layer


class Scaled(Any8):
    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * self.gain


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ReadsVars, float), (ReadsPast, float), (HasSlot, float), (Caches, float), (HasWord, _word),
        (Scaled, lambda n: -0.0 if n == 3 else 0.0), (Scaled, lambda n: n == 3 or 1),
    ],
)  # fmt: skip
def test_values_that_differ_unseen(kind: Any, value: Any) -> None:
    blocks = [kind(gain=value(n)) for n in range(5)]
    if kind is Caches:
        for block in blocks:
            block.scale()
    assert "3" not in agree(stack(*blocks), X)


def test_a_repeated_trace_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Repeats, "_fits", lambda *_: True)
    model = stack(*[Scaled(gain=n + 1.0) for n in range(5)])
    assert ", 5.0), kwargs" not in traced(model, X)[1]
    converted: Any = st3fx.convert(model, torch.randn(4, 8))[0]
    assert [island.st3fx_name for island in converted.st3fx_islands] == [""]
    x = torch.randn(6, 8)
    assert torch.equal(converted(x), model(x))


@pytest.mark.parametrize("seed", range(12))
def test_random_stacks_are_traced_alike(seed: int) -> None:
    chance = random.Random(seed)
    torch.manual_seed(seed)
    blocks: list[Block] = [chance.choice([Block, Sized])() for _ in range(chance.randint(3, 9))]
    for change in chance.sample(CHANGES, chance.randint(0, 3)):
        change(chance.choice(blocks))
    if chance.random() < 0.4:
        one, other = chance.choice(blocks), chance.choice(blocks)
        one.second.weight = other.second.weight
    order = [*blocks, *chance.choices(blocks, k=chance.randint(0, 2))]
    chance.shuffle(order)
    agree(stack(*order), X)


def test_a_converted_stack_computes_what_the_original_does() -> None:
    blocks = [Block() for _ in range(4)]
    _other_number(blocks[2])
    model = stack(*blocks)
    found, _ = st3fx.convert(model, torch.randn(4, 8))
    converted: Any = found
    x = torch.randn(6, 8)
    assert torch.equal(converted(x), model(x))
    # The guards of repeated blocks are their own.
    converted[3].gain = blocks[3].gain = 5.0
    assert torch.equal(converted(x), model(x))
