"""The operator's place in a graph: after the weight, before its uses, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import st3fx
from st3fx.graphs.calls import CallSpec
from st3fx.modules.marks import state_name
from st3fx.passes.convert.rewrite import SiteUses, copy_graph, insert_op
from st3fx.passes.trace import capture
from st3fx.plan.sites import Layout, Site
from tests.nets import Net, image
from tests.parity import check

OP = torch.ops.st3fx.soft_threshold.default
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
STATE = ("threshold",)


class Uses(nn.Module):
    """Reads a weight's shape, multiplies with it twice, and reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6, bias=False)
        self.other = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(self.fc(x)) * self.fc.weight.size(0) + self.fc.weight.shape[1]
        return self.other(y)


def site(name: str) -> Site:
    return Site(name, (name,), (6, 6), "linear", Layout(), (name.rpartition(".")[0],))


def captured(model: nn.Module) -> fx.Graph:
    everywhere = {name for name, _ in model.named_modules()}
    return capture("", model, CallSpec(model, (X,), {}), everywhere).graph


def operators(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is OP]


def test_hit() -> None:
    graph = captured(Uses())
    assert insert_op(graph, SiteUses(graph, ""), site("fc.weight"), st3fx.ST3(), STATE)
    graph.lint()
    (node,) = operators(graph)
    weight, threshold, *constants = node.args
    assert isinstance(weight, fx.Node)
    assert isinstance(threshold, fx.Node)
    assert weight.target == "fc.weight"
    assert threshold.target == "fc.st3fx_weight_threshold"
    assert constants == [[0], 1, True]
    assert len(node.users) == 2
    assert all(user.target is not OP for user in node.users)
    # What is left on the latent weight only reads its shape.
    rest = [user for user in weight.users if user is not node]
    assert {str(user.target) for user in rest} <= {"size", str(getattr)}
    assert node.name == "fc_weight_effective"


def test_no_hit() -> None:
    graph = captured(Uses())
    before = [str(node) for node in graph.nodes]
    assert not insert_op(graph, SiteUses(graph, ""), site("absent.weight"), st3fx.ST3(), STATE)
    assert [str(node) for node in graph.nodes] == before


def test_a_site_outside_the_island_is_no_hit() -> None:
    graph = captured(Uses())
    uses = SiteUses(graph, "elsewhere")
    assert not insert_op(graph, uses, site("fc.weight"), st3fx.ST3(), STATE)
    assert insert_op(graph, uses, site("elsewhere.fc.weight"), st3fx.ST3(), STATE)


def test_islands_with_similar_names_are_told_apart() -> None:
    graph = captured(Uses())
    for island, name in (("layer1", "layer10.fc.weight"), ("a", "b.fc.weight")):
        uses = SiteUses(graph, island)
        assert not insert_op(graph, uses, site(name), st3fx.ST3(), STATE)


def test_a_copy_is_apart() -> None:
    graph = captured(Uses())
    copied = copy_graph(graph)
    insert_op(copied, SiteUses(copied, ""), site("fc.weight"), st3fx.ST3(), STATE)
    assert operators(copied)
    assert not operators(graph)


def test_numbers_are_equal_before_and_after() -> None:
    checked = check(Uses(), X)
    assert checked.sites == ["fc.weight", "other.weight"]
    islands: Any = checked.model.st3fx_islands
    assert [len(operators(island.graph)) for island in islands] == [2]


def test_a_view_of_a_weight_is_a_use() -> None:
    class Views(Uses):
        def forward(self, x: Tensor) -> Any:
            y = self.fc(x) @ self.fc.weight.T + x @ self.other.weight.mT
            return y + self.other(x) @ self.other.weight.t()

    checked = check(Views(), X)
    assert list(checked.islands) == [""]


def test_state_stands_beside_each_name_of_a_weight() -> None:
    converted, sparsifier = st3fx.convert(Net(), image())
    keys = {key for key in converted.state_dict() if "st3fx" in key}
    owners = ["stem", "block.conv1", "block.conv2", "fc", "again", "head"]
    beside = {f"{owner}.st3fx_weight_{key}" for owner in owners for key in ("threshold", "mask")}
    assert keys == {"st3fx_step", "st3fx_sparsity", *beside}
    assert not [name for name, _ in converted.named_buffers() if "st3fx" in name]
    assert not [name for name, _ in converted.named_parameters() if "st3fx" in name]
    sparsifier.set_sparsity(0.5)
    one: Any
    other: Any
    one, other = (converted.get_submodule(n).st3fx_weight_threshold for n in ("fc", "again"))
    assert one.item() == other.item() > 0


class TwoNames(nn.Module):
    """A layer of its own that stands in a container too."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(6, 6)
        self.block = nn.Sequential(self.always, nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        return self.always(self.block(x))


class TwoNamesOnData(TwoNames):
    """The same where no graph holds both calls."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x if x.sum() < 1e9 else 2 * x)


@pytest.mark.parametrize("kind", [TwoNames, TwoNamesOnData])
def test_a_module_with_two_names_keeps_its_weight(kind: type[TwoNames]) -> None:
    converted, sparsifier = st3fx.convert(kind(), X)
    assert [site.aliases for site in sparsifier.plan.sites] == [("block.0.weight",)]
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(converted)
    assert isinstance(converted, TwoNames)
    assert isinstance(folded, TwoNames)
    assert torch.equal(converted(X), folded(X))
    assert torch.equal(converted.block(X), folded.block(X))
    assert int((folded.always.weight == 0).sum()) == 18


def test_names_of_state() -> None:
    assert state_name("weight", "threshold") == "st3fx_weight_threshold"
    assert state_name("in_proj_weight", "threshold") == "st3fx_in_proj_weight_threshold"
