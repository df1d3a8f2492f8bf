"""What a report is made of: plain data that was measured or read, before any of it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from st3fx.bench.result import BenchResult
from st3fx.core.sites import Site, SparsityPlan
from st3fx.export.result import Size
from st3fx.files.manifest import Recipe
from st3fx.flops.report import FlopsReport, LayerFlops
from st3fx.report.histogram import Counts, Spread
from st3fx.training.settings import Settings


@dataclass(frozen=True)
class Layer:
    """A site with what became of it.

    Attributes:
        site: The site.
        nonzeros: Effective weights that are not zero.
        threshold: Layer threshold, in the latent weights' unit; ``None`` while inactive.
        counts: Its latent weights over its own range.
        flops: What it costs in one call; ``None`` where the count has no row for it.
    """

    site: Site
    nonzeros: int
    threshold: float | None
    counts: Counts
    flops: LayerFlops | None

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.nonzeros / self.site.numel


@dataclass(frozen=True)
class ModelFacts:
    """A converted model.

    Attributes:
        recipe: How it was converted.
        versions: Of what converted it.
        plan: Sites, and what was skipped.
        layers: The sites in the order of execution.
        spread: The latent weights of all sites together.
        flops: Convention -> count of one call with one sample.
        uncounted: Why there is no count; empty if there is one.
        flow: What ``st3fx.dataflow`` gives.
        sizes: Weights and files, the dense weights first.
    """

    recipe: Recipe
    versions: Mapping[str, str]
    plan: SparsityPlan
    layers: tuple[Layer, ...]
    spread: Spread
    flops: Mapping[str, FlopsReport]
    uncounted: str
    flow: nx.DiGraph
    sizes: tuple[Size, ...]

    @property
    def nonzeros(self) -> int:
        """Effective weights of all sites that are not zero."""
        return sum(layer.nonzeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the sites' weights."""
        return 1 - self.nonzeros / self.plan.numel if self.plan.numel else 0.0


@dataclass(frozen=True)
class TrainingFacts:
    """A run.

    Attributes:
        settings: Of the run.
        rows: Of its log, oldest first.
    """

    settings: Settings
    rows: tuple[Mapping[str, Any], ...]

    @property
    def tests(self) -> list[Mapping[str, Any]]:
        """The evaluations."""
        return [row for row in self.rows if row["kind"] == "eval"]

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The rows of training."""
        return [row for row in self.rows if row["kind"] == "train"]

    @property
    def dense(self) -> Mapping[str, Any] | None:
        """The last evaluation without any sparsity."""
        return next((row for row in reversed(self.tests) if row["sparsity"] == 0), None)


@dataclass(frozen=True)
class Facts:
    """All that a report shows; what is ``None`` has a line in it that says how to get it.

    Attributes:
        name: Of the model.
        source: The run's folder or the bundle, as it was given.
        is_run: Whether it is a run.
        model: The converted model.
        training: The run.
        bench: What a benchmark measured.
        commands: What makes all of it again, in order.
    """

    name: str
    source: Path
    is_run: bool
    model: ModelFacts | None
    training: TrainingFacts | None
    bench: BenchResult | None
    commands: tuple[str, ...]
