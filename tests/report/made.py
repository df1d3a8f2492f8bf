"""Facts of models that nobody trained: as many sites as a test wants, under any names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import torch

from st3fx.export.export_result import Size
from st3fx.files.manifest import Recipe
from st3fx.flops.flops_report import FlopsReport, LayerFlops
from st3fx.plan.sites import Layout, Site, SparsityPlan
from st3fx.report.facts import Facts, Layer, ModelFacts
from st3fx.report.histogram import Weights, small, spread


def block_names(count: int) -> list[str]:
    """Names as a deep model has them: stages of blocks of three layers."""
    return [f"stages.{k // 90}.blocks.{k // 3 % 30}.conv{k % 3 + 1}.weight" for k in range(count)]


def made_facts(names: Sequence[str]) -> Facts:
    """A chain of convolutions with these names, a skip connection over every three of them."""
    sites = [_site(name) for name in names]
    weights = {name: _weights() for name in names}
    rows = {site.name: _cost(site) for site in sites}
    report = FlopsReport("Made", "aten", "exact", ((1, 8, 8, 8),), rows)
    layers = tuple(
        Layer(site, 100, 0.5, small(weights[site.name]), rows[site.name]) for site in sites
    )
    plan = SparsityPlan(tuple(sites), total_parameters=len(names) * 600)
    model = ModelFacts(
        recipe=Recipe("made.py", {"name": "st3", "sparsity": 0.8}),
        versions={"st3fx": "1", "torch": "2"},
        plan=plan,
        layers=layers,
        spread=spread(list(weights.values())),
        flops={"exact": report},
        uncounted="",
        flow=chain(names),
        sizes=(Size("dense weights", 4000, 3000), Size("folded weights", 4000, 1000)),
    )
    return Facts("made", Path("made.st3fx"), False, model, None, None, ("st3fx convert made.py",))


def chain(names: Sequence[str]) -> nx.DiGraph:
    """Sites one after another; each third is added to what went into the first of the three."""
    graph = nx.DiGraph()
    for name in names:
        graph.add_node(name, kind="site", op="conv2d", shape=(8, 8, 3, 3))
    graph.add_node("x", kind="input")
    last = block = "x"
    for index, name in enumerate(names):
        graph.add_edge(last, name, through=("relu",))
        last = name
        if index % 3 == 2:
            join = f"add_{index}"
            graph.add_node(join, kind="add")
            graph.add_edge(last, join, through=())
            graph.add_edge(block, join, through=())
            last = block = join
    graph.add_node("output", kind="output")
    graph.add_edge(last, "output", through=())
    return graph


def _site(name: str) -> Site:
    return Site(name, (name,), (8, 8, 3, 3), "conv2d", Layout(), (name.rpartition(".")[0],))


def _cost(site: Site) -> LayerFlops:
    return LayerFlops(site.name, site.op, site.shape, site.numel, 100, 36864, 6400, 1, 8, 8)


def _weights() -> Weights:
    latent = torch.linspace(-1, 1, 576)
    return Weights(latent, torch.where(latent.abs() > 0.5, latent, 0.0), 0.5)
