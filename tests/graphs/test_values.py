"""Values of a graph's nodes without data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from st3fx.graphs.purity import DataError, Unknown, pruned
from st3fx.graphs.values import Evaluation
from st3fx.modules.same import meta_of
from st3fx.modules.state import rng_states


class Leaf(nn.Module):
    """Counts, draws, writes into its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Any:
        self.seen: Tensor
        self.calls += 1
        self.log.append(self.calls)
        self.seen += 1
        return self.norm(x) + torch.rand(4), None


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()
        self.weight = nn.Parameter(torch.ones(4, 3))


def evaluated(build: Any, *tensors: Tensor) -> tuple[Evaluation, fx.Node]:
    """The values of a graph that ``build`` makes of its graph and placeholders."""
    graph = fx.Graph()
    node = build(graph, *[graph.placeholder(f"x{n}") for n in range(len(tensors))])
    evaluation = Evaluation(Root(), [meta_of(tensor) for tensor in tensors])
    evaluation.run(graph.nodes)
    return evaluation, node


def test_a_called_module_stays_as_it_was() -> None:
    root = Root()
    graph = fx.Graph()
    node = graph.call_module("leaf", (graph.placeholder("x"),))
    before = {name: tensor.clone() for name, tensor in root.state_dict().items()}
    generators = rng_states()
    evaluation = Evaluation(root, [meta_of(torch.zeros(2, 4))])
    evaluation.run(graph.nodes)
    value = evaluation.values[node]
    assert value[0].shape == (2, 4)
    assert value[1] is None
    assert (root.leaf.calls, root.leaf.log) == (0, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in root.state_dict().items())
    assert rng_states() == generators


def test_hooks_do_not_run() -> None:
    root = Root()
    called: list[int] = []
    root.leaf.register_forward_hook(lambda *_: called.append(1))
    graph = fx.Graph()
    node = graph.call_module("leaf", (graph.placeholder("x"),))
    evaluation = Evaluation(root, [meta_of(torch.zeros(2, 4))])
    evaluation.run(graph.nodes)
    assert isinstance(evaluation.values[node], Unknown)
    assert called == []


def test_a_function_of_unknown_effects_does_not_run() -> None:
    called: list[int] = []

    def effect(x: Any) -> Any:
        called.append(1)
        return x

    evaluation, node = evaluated(lambda g, x: g.call_function(effect, (x,)), torch.zeros(2))
    assert isinstance(evaluation.values[node], Unknown)
    assert called == []


def test_what_follows_from_the_unknown_is_unknown() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        found = graph.call_method("nonzero", (x,))
        return graph.call_method("size", (found, 0))

    evaluation, node = evaluated(build, torch.zeros(2))
    assert isinstance(evaluation.values[node], Unknown)
    with pytest.raises(DataError):
        evaluation.answer(node, "int")


def test_data_made_of_sizes_are_known() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        positions = graph.call_function(torch.arange, (graph.call_method("size", (x, 1)),))
        return graph.call_method("all", (graph.call_method("lt", (positions, 4)),))

    found = [evaluated(build, torch.zeros(2, length)) for length in (4, 5)]
    answers = [evaluation.answer(node, "bool") for evaluation, node in found]
    assert answers == [True, False]


@pytest.mark.parametrize("name", ["rand", "randn", "randperm"])
def test_random_numbers_are_no_known_data(name: str) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        drawn = graph.call_function(getattr(torch, name), (4,))
        return graph.call_method("sum", (drawn,))

    evaluation, node = evaluated(build, torch.zeros(2))
    with pytest.raises(DataError):
        evaluation.answer(node, "float")


def test_what_was_written_to_is_no_known_data() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        zeros = graph.call_function(torch.zeros, (2,))
        graph.call_method("copy_", (zeros, x))
        return graph.call_method("sum", (zeros,))

    evaluation, node = evaluated(build, torch.zeros(2))
    with pytest.raises(DataError):
        evaluation.answer(node, "float")


def test_a_sparse_tensor_has_no_metadata() -> None:
    assert meta_of(torch.zeros(2, 2).to_sparse()) is None


def test_a_parameter_is_plain() -> None:
    meta = meta_of(nn.Parameter(torch.zeros(2, 3).t()))
    assert meta is not None
    assert (meta.shape, meta.stride) == ((3, 2), (1, 3))


def test_the_part_that_answers_need() -> None:
    """Inputs stay, to be counted; so does what changes a needed value in place."""
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    big = graph.call_method("relu", (y,))
    copy = graph.call_method("clone", (x,))
    graph.call_method("unsqueeze_", (copy, 0))
    size = graph.call_method("size", (copy, 0))
    graph.output((big, size))
    part = pruned(graph, [size])
    assert [node.target for node in part.nodes] == [
        "x", "y", "clone", "unsqueeze_", "size", "output",
    ]  # fmt: skip
    evaluation = Evaluation(Root(), [meta_of(torch.zeros(5)), meta_of(torch.zeros(1))])
    *nodes, output = part.nodes
    evaluation.run(nodes)
    assert [evaluation.values[node] for node in output.args[0]] == [1]
