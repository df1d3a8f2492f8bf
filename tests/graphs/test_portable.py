"""Graphs as plain data."""

from __future__ import annotations

import collections
import pickle
from typing import Any

import torch
from torch import fx

import st3fx.sparsity.ops  # noqa: F401 - registers the operator
from st3fx.graphs.code import from_portable, to_portable
from st3fx.graphs.graph import ordered_dict


def graph_of_everything() -> fx.Graph:
    """Sizes as arguments of a factory, an operator's overload, slices, dtypes, nested outputs."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 0))
    zeros = graph.call_function(torch.zeros, (size, 3), {"dtype": torch.float64})
    rows = graph.call_function(torch.ops.aten.add.Tensor, (x, 1))
    part = graph.call_function(
        torch.Tensor.__getitem__, (rows, (slice(None, size), slice(0, None, 2)))
    )
    items = graph.call_function(ordered_dict, ([["a", zeros], ["b", [part, None]]],))
    graph.output({"out": items, "name": "x", "same": (zeros, zeros)})
    return graph


def run(graph: fx.Graph) -> Any:
    return fx.GraphModule({}, graph)(torch.arange(8.0).view(2, 4))


def test_a_pickled_graph_computes_the_same() -> None:
    graph = graph_of_everything()
    again = from_portable(pickle.loads(pickle.dumps(to_portable(graph))))
    again.lint()
    assert [node.name for node in again.nodes] == [node.name for node in graph.nodes]
    expected, actual = run(graph), run(again)
    assert type(actual["out"]) is collections.OrderedDict
    assert actual["out"]["a"].dtype == torch.float64
    assert torch.equal(actual["out"]["a"], expected["out"]["a"])
    assert torch.equal(actual["out"]["b"][0], expected["out"]["b"][0])
    assert actual["out"]["b"][0].tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert actual["same"][0] is actual["same"][1]


def test_nodes_that_nothing_uses_stay() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_method("add_", (x, 1))
    graph.output(x)
    again = from_portable(to_portable(graph))
    assert fx.GraphModule({}, again)(torch.zeros(2)).tolist() == [1, 1]
