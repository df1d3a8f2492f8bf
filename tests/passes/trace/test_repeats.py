"""A trace is given again only to a module that would be traced to the same."""

from __future__ import annotations

import random
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
