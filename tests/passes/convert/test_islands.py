"""Which modules become graphs, and what keeps its own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.nets import Mixed, Net, image, sequence
from tests.parity import check

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class Branch(nn.Module):
    """Cannot be traced."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Any:
        y = self.layers(x)
        return y if y.sum() < 1e9 else -y


def test_a_traceable_model_is_one_island() -> None:
    checked = check(Net(), image())
    assert checked.islands == {"": ("train", "eval")}
    assert checked.opaque == {}


def test_an_untraceable_root_gives_its_children() -> None:
    checked = check(Branch(nn.Linear(6, 6), nn.Linear(6, 3)), X)
    assert checked.islands == {"layers": ("both",)}
    assert list(checked.opaque) == [""]


def test_an_untraceable_module_is_a_call_in_its_parents_graph() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Branch(nn.Linear(6, 6)), nn.Linear(6, 3))
    checked = check(model, X)
    assert checked.islands == {"": ("both",), "1.layers": ("both",)}
    assert list(checked.opaque) == ["1"]
    graphs: Any = checked.model.st3fx_islands
    assert [graph.st3fx_name for graph in graphs] == ["", "1.layers"]
    calls = [node.target for node in graphs[0].graph.nodes if node.op == "call_module"]
    assert calls == ["1"]


def test_branches_at_every_depth() -> None:
    model = Branch(nn.Linear(6, 6), Branch(nn.Linear(6, 6), Branch(nn.Linear(6, 6))))
    checked = check(model, X)
    assert checked.islands == {
        "layers": ("both",),
        "layers.1.layers": ("both",),
        "layers.1.layers.1.layers": ("both",),
    }
    assert len(checked.sites) == 3


def test_a_model_of_several_islands() -> None:
    checked = check(Mixed(), sequence())
    assert set(checked.islands) == {"embed", "mlp"}
    assert set(checked.opaque) >= {"", "attention"}
    assert checked.sites == [
        "embed.weight", "attention.in_proj_weight", "attention.out_proj.weight",
        "mlp.0.weight", "mlp.2.weight", "raw",
    ]  # fmt: skip


def test_modules_without_sites_are_not_traced_into() -> None:
    """What they do inside is their own affair, as long as it is called."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x * 2 if x.sum() > 0 else x * 3

    checked = check(nn.Sequential(nn.Linear(6, 6), Odd(), nn.Linear(6, 3)), X)
    assert checked.islands == {"": ("both",)}
    assert checked.opaque == {}


def test_excluding_the_sites_of_a_module_makes_it_a_plain_call() -> None:
    model = nn.Sequential(nn.Linear(6, 6), Branch(nn.Linear(6, 6)), nn.Linear(6, 3))
    checked = check(model, X, exclude="1.*")
    assert checked.islands == {"": ("both",)}
    assert checked.opaque == {}


def test_containers_are_gone_through() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
            self.named = nn.ModuleDict({"a": nn.Linear(6, 6)})

        def forward(self, x: Tensor) -> Any:
            for part in self.parts:
                x = part(x)
            return self.named["a"](x)

    class Data(Parts):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return y if y.sum() < 1e9 else -y

    assert check(Parts(), X).islands == {"": ("both",)}
    expected = ["parts.0", "parts.1", "named.a"]
    assert list(check(Data(), X).islands) == sorted(expected)


class Two(nn.Module):
    """Called in two ways by its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor, double: bool = False) -> Any:
        y = self.fc(x)
        return y * 2 if double else y


class CallsTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.two = Two()

    def forward(self, x: Tensor) -> Any:
        y = self.two(self.two(x), double=True)
        return y if y.sum() < 1e9 else -y


def test_each_way_of_calling_gets_its_graph() -> None:
    checked = check(CallsTwice(), X)
    assert checked.islands == {"two": ("both", "both")}
    assert checked.sites == ["two.fc.weight"]


@pytest.mark.parametrize("verify", [False, True])
def test_the_plan_shows_the_reason(verify: bool) -> None:
    _, sparsifier = st3fx.convert(Branch(nn.Linear(6, 6)), X, verify=verify)
    (opaque,) = sparsifier.plan.opaque
    assert (opaque.name, opaque.type) == ("", "Branch")
    assert opaque.reason.startswith("branches on a tensor's data at test_islands.py:")


def test_islands_are_a_sequence_of_graph_modules() -> None:
    checked = check(Net(), image())
    islands: Any = checked.model.st3fx_islands
    assert len(islands) == 2
    assert [graph.st3fx_mode for graph in islands] == ["train", "eval"]
    assert [type(graph).__name__ for graph in islands[0:1]] == ["Net"]
    assert islands[-1].st3fx_mode == "eval"
    with pytest.raises(IndexError):
        islands[2]
