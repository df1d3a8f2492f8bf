"""The model-level view: exact edges of small networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import st3fx
from tests.nets import Block, Mixed, sequence

IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
Edges = set[tuple[str, str]]


def flow(model: nn.Module, x: Any) -> Any:
    converted, _ = st3fx.convert(model, x, verify=False)
    return st3fx.dataflow(converted)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.block = Block(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def test_a_residual_block() -> None:
    graph = flow(ResNet(), IMAGE)
    assert set(graph.edges) == {
        ("x", "stem.weight"),
        ("stem.weight", "block.conv1.weight"),
        ("block.conv1.weight", "block.conv2.weight"),
        ("stem.weight", "add"),
        ("block.conv2.weight", "add"),
        ("add", "head.weight"),
        ("head.weight", "output"),
    }
    kinds = {name: data["kind"] for name, data in graph.nodes.items()}
    assert kinds["x"] == "input"
    assert kinds["add"] == "add"
    assert kinds["output"] == "output"
    assert kinds["stem.weight"] == "site"
    assert graph.nodes["stem.weight"]["op"] == "conv2d"
    assert graph.nodes["stem.weight"]["shape"] == (8, 4, 3, 3)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        y = self.one(x)
        y += self.two(x)
        return self.out(y)


def test_an_addition_in_place_is_a_join() -> None:
    graph = flow(InPlace(), torch.randn(3, 4))
    assert graph.nodes["iadd"]["kind"] == "add"
    assert {("one.weight", "iadd"), ("two.weight", "iadd"), ("iadd", "out.weight")} <= set(
        graph.edges
    )


def test_what_lies_on_the_way() -> None:
    graph = flow(ResNet(), IMAGE)
    assert graph.edges["block.conv1.weight", "block.conv2.weight"]["through"] == (
        "block.norm",
        "relu",
    )
    assert graph.edges["add", "head.weight"]["through"] == ("relu", "mean")
    assert graph.edges["x", "stem.weight"]["through"] == ()


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(4, 3, 1)
        self.right = nn.Conv2d(4, 5, 3, padding=1)
        self.gate = nn.Conv2d(4, 8, 1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        both = torch.cat([self.left(x), self.right(x).relu()], dim=1)
        return self.out(both * self.gate(x).sigmoid())


def test_concatenation_and_gate() -> None:
    graph = flow(Branches(), IMAGE)
    assert set(graph.edges) == {
        ("x", "left.weight"),
        ("x", "right.weight"),
        ("x", "gate.weight"),
        ("left.weight", "cat"),
        ("right.weight", "cat"),
        ("cat", "mul"),
        ("gate.weight", "mul"),
        ("mul", "out.weight"),
        ("out.weight", "output"),
    }
    assert graph.nodes["cat"]["kind"] == "cat"
    assert graph.nodes["cat"]["dim"] == 1
    assert graph.nodes["mul"]["kind"] == "mul"
    assert graph.edges["right.weight", "cat"]["through"] == ("relu",)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.fc.weight

    def forward(self, x: Tensor) -> Any:
        return self.tied(self.fc(x).relu())


def test_a_weight_that_feeds_itself() -> None:
    graph = flow(Shared(), torch.randn(2, 4))
    assert set(graph.edges) == {
        ("x", "fc.weight"),
        ("fc.weight", "fc.weight"),
        ("fc.weight", "output"),
    }


def test_an_addition_with_a_constant_or_of_one_branch_is_no_join() -> None:
    class Doubles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.out = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.fc(x) + 1
            return self.out(y + y)

    graph = flow(Doubles(), torch.randn(2, 4))
    assert set(graph.edges) == {
        ("x", "fc.weight"),
        ("fc.weight", "out.weight"),
        ("out.weight", "output"),
    }
    assert graph.edges["fc.weight", "out.weight"]["through"] == ("add", "add")


def test_several_islands_keep_their_own_boundaries() -> None:
    converted, sparsifier = st3fx.convert(Mixed(), sequence(), verify=False)
    graph = st3fx.dataflow(converted)
    names = {site.name for site in sparsifier.plan.sites}
    assert {name for name, data in graph.nodes.items() if data["kind"] == "site"} == names
    assert ("embed.input_1", "embed.weight") in graph.edges
    assert ("mlp.input_1", "mlp.0.weight") in graph.edges
    assert graph.edges["mlp.0.weight", "mlp.2.weight"]["through"] == ("mlp.1",)
    assert ("embed.weight", "mlp.0.weight") not in graph.edges


def test_an_opaque_module_inside_a_graph_stands_for_its_sites() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(6, 8)
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.lstm(self.embed(x))[0])

    edges = set(flow(Attends(), sequence()).edges)
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0"):
        assert ("embed.weight", name) in edges
        assert (name, "head.weight") in edges
    assert ("embed.weight", "head.weight") not in edges


def test_the_plan_carries_the_edges() -> None:
    converted, sparsifier = st3fx.convert(ResNet(), IMAGE, verify=False)
    plan = sparsifier.plan
    assert set(plan.edges) == set(st3fx.dataflow(converted).edges)
    assert plan.fed_by("head.weight") == ("add",)
    assert plan.fed_by("stem.weight") == ("x",)
