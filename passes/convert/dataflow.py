"""Dataflow: the model-level view as a networkx graph over sites and joins.

Nodes are sites (by full name), joins (additions, products and concatenations of several branches),
and the islands' inputs and outputs. An edge says that the left one's output reaches the right one's
input; ``through`` lists the operators on the way, which tells whether channels keep their places.

Each island gives its part; where a model is several islands, their inputs and outputs stay open.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from st3fx.graphs import in_place
from st3fx.graphs.forward import SparseForward, sparse_forwards
from st3fx.graphs.graph import Variant
from st3fx.modules.marks import conversion_of, parameter_of
from st3fx.passes.convert.computed import weight_only
from st3fx.plan.sites import Site, SparsityPlan

ADDITIONS: frozenset[Any] = frozenset(
    {operator.add, in_place.iadd, torch.add, operator.sub, in_place.isub, torch.sub}
    | {"add", "add_", "sub", "sub_"}
)
PRODUCTS: frozenset[Any] = frozenset(
    {operator.mul, in_place.imul, torch.mul, "mul", "mul_", torch.matmul, torch.bmm, "matmul"}
)
CONCATENATIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.stack})

_Origins = dict[str, tuple[str, ...]]
"""Producer -> operators passed since."""


def dataflow(model: nn.Module) -> nx.DiGraph:
    """Who feeds whom in a converted model.

    Args:
        model: What ``st3fx.convert`` gave; its plan names the sites.

    Returns:
        A directed graph. Node attribute ``kind``: ``site``, ``add``, ``mul``, ``cat``, ``input`` or
        ``output``; a ``cat`` has its ``dim``. Edge attribute ``through``: names of the operators
        and modules between the two, in order.
    """
    plan = conversion_of(model).plan
    graph = nx.DiGraph()
    for site in plan.sites:
        graph.add_node(site.name, kind="site", op=site.op, shape=site.shape)
    islands = {island.name for island in plan.islands}
    for forward in sparse_forwards(model):
        if forward.name in islands and forward.variants:
            _Walk(graph, forward, forward.variants[0], plan.sites).run()
    return graph


def flow_of(plan: SparsityPlan) -> nx.DiGraph:
    """The same from a plan alone: without what lies between two nodes, and along which dimension.

    Args:
        plan: Of a conversion; names of joins say what they are.
    """
    graph = nx.DiGraph()
    for site in plan.sites:
        graph.add_node(site.name, kind="site", op=site.op, shape=site.shape)
    graph.add_edges_from(plan.edges, through=())
    for name, node in graph.nodes.items():
        if "kind" not in node:
            own = name.rpartition(".")[2]
            join = next((kind for kind in ("mul", "cat") if kind in own), "add")
            inner = join if graph.out_degree(name) else "output"
            node["kind"] = inner if graph.in_degree(name) else "input"
    return graph


class _Walk:
    """Adds one island to the model's graph."""

    def __init__(
        self, graph: nx.DiGraph, forward: SparseForward, variant: Variant, sites: Sequence[Site]
    ) -> None:
        self.graph = graph
        self.prefix = f"{forward.name}." if forward.name else ""
        self.nodes = variant.run.graph
        self.static = weight_only(self.nodes)
        self.effective = _effective_weights(self.nodes, self.prefix)
        self.called = _called_sites(sites, self.prefix)
        self.origins: dict[fx.Node, _Origins] = {}

    def run(self) -> None:
        for node in self.nodes.nodes:
            if node not in self.static:
                self.origins[node] = self._visit(node)

    def _visit(self, node: fx.Node) -> _Origins:
        if node.op in ("placeholder", "output"):
            return self._boundary(node)
        names = [self.effective[n] for n in node.all_input_nodes if n in self.effective]
        if node.op == "call_module":
            names += self.called.get(str(node.target), [])
        incoming = [self.origins[n] for n in node.all_input_nodes if n in self.origins]
        if names:
            self._connect(incoming, names)
            return dict.fromkeys(names, ())
        kind = _join_kind(node)
        branches = [origins for origins in incoming if origins]
        if kind is not None and len({id(origins) for origins in branches}) > 1:
            return self._join(node, kind, branches)
        step = (self._label(node),)
        merged: _Origins = {}
        for origins in branches:
            merged.update({name: (*through, *step) for name, through in origins.items()})
        return merged

    def _label(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{self.prefix}{node.target}"
        target: str | Callable[..., Any] = node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def _boundary(self, node: fx.Node) -> _Origins:
        name = f"{self.prefix}{node.name}"
        kind = "input" if node.op == "placeholder" else "output"
        self.graph.add_node(name, kind=kind)
        self._connect([self.origins[n] for n in node.all_input_nodes if n in self.origins], [name])
        return {name: ()}

    def _join(self, node: fx.Node, kind: str, branches: list[_Origins]) -> _Origins:
        name = f"{self.prefix}{node.name}"
        extra = {"dim": _concatenation_dim(node)} if kind == "cat" else {}
        self.graph.add_node(name, kind=kind, **extra)
        self._connect(branches, [name])
        return {name: ()}

    def _connect(self, incoming: list[_Origins], targets: list[str]) -> None:
        for origins in incoming:
            for source, through in origins.items():
                for target in targets:
                    self.graph.add_edge(source, target, through=through)


def _effective_weights(graph: fx.Graph, prefix: str) -> dict[fx.Node, str]:
    """Effective-weight node, or a view of one -> name of its site."""
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        sources = [names[n] for n in node.all_input_nodes if n in names]
        namespace = getattr(node.target, "namespace", None)
        if node.op == "call_function" and namespace == "st3fx":
            state = node.args[1]
            owner, _, name = state.target.rpartition(".")
            parameter = parameter_of(name)
            names[node] = f"{prefix}{owner}.{parameter}" if owner else f"{prefix}{parameter}"
        elif sources and all(n in names for n in node.all_input_nodes):
            names[node] = sources[0]
    return names


def _called_sites(sites: Sequence[Site], prefix: str) -> dict[str, list[str]]:
    """Submodule that keeps its own forward -> the sites held in or below it."""
    held: dict[str, list[str]] = {}
    for site in sites:
        for holder in site.holders:
            if holder.startswith(prefix) and holder != prefix.removesuffix("."):
                parts = holder.removeprefix(prefix).split(".")
                for count in range(1, len(parts) + 1):
                    held.setdefault(".".join(parts[:count]), []).append(site.name)
    return held


def _join_kind(node: fx.Node) -> str | None:
    for kind, targets in (("add", ADDITIONS), ("mul", PRODUCTS), ("cat", CONCATENATIONS)):
        if node.op in ("call_function", "call_method") and node.target in targets:
            return kind
    return None


def _concatenation_dim(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
