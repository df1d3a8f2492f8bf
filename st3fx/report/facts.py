"""What a report is made of: plain data that was measured or read, before any of it is drawn.

It ends with the commands that make a run again, with the options that differ from the defaults.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from st3fx import methods
from st3fx.bench.bench_result import BenchResult
from st3fx.export.export_result import Size
from st3fx.files.manifest import Recipe
from st3fx.flops.flops_report import FlopsReport, LayerFlops
from st3fx.methods.base import Method, TargetMethod
from st3fx.plan.settings import NAMES as CONVERSION_SETTINGS
from st3fx.plan.sites import Site, SparsityPlan
from st3fx.report.histogram import Counts, Spread
from st3fx.training.sensitivity import SensitivityResult
from st3fx.training.settings import Settings


@dataclass(frozen=True)
class ReportResult:
    """A written report.

    Attributes:
        path: The page.
        size: Bytes of it.
        name: Of the model.
        sections: Name of each section -> empty, or what gives it where there was nothing to show.
        pictures: PNG files.
    """

    path: Path
    size: int
    name: str
    sections: dict[str, str]
    pictures: tuple[Path, ...] = ()

    @property
    def filled(self) -> tuple[str, ...]:
        """Sections that show something."""
        return tuple(name for name, missing in self.sections.items() if not missing)

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "model": self.name,
            "sections": {
                name: {"filled": not missing, "missing": missing or None}
                for name, missing in self.sections.items()
            },
            "pictures": [str(path) for path in self.pictures],
        }


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
    def zeros(self) -> dict[str, tuple[int, int]]:
        """Site -> weights that are zero, and all."""
        return {layer.site.name: (layer.site.numel - layer.nonzeros, layer.site.numel)
                for layer in self.layers}  # fmt: skip

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
        refused: Why the model of a run that has ended is not known; empty if it is.
        sensitivity: What ``st3fx sensitivity`` measured.
    """

    name: str
    source: Path
    is_run: bool
    model: ModelFacts | None
    training: TrainingFacts | None
    bench: BenchResult | None
    commands: tuple[str, ...]
    refused: str = ""
    sensitivity: SensitivityResult | None = None


def train_command(settings: Settings) -> str:
    """``st3fx train SPEC --epochs 4 -o runs/resnet20``."""
    words = ["st3fx", "train", settings.spec]
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.name != "spec" and value not in (field.default, None):
            words += _option(_flag(field), value)
    return shlex.join(words)


def convert_command(recipe: Recipe, bundle: Path) -> str:
    """``st3fx convert torchvision:resnet50 --input 1x3x224x224 -o resnet50.st3fx``."""
    words = ["st3fx", "convert", recipe.spec]
    for text in recipe.inputs or ():
        words += ["--input", text]
    words += _method_words(methods.from_dict(recipe.method))
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    for name in ("total_steps", *CONVERSION_SETTINGS, "seed"):
        value = getattr(recipe, name)
        if value != defaults[name]:
            words += _option(f"--{name.replace('_', '-')}", value)
    return shlex.join([*words, "-o", str(bundle)])


def _method_words(method: Method) -> list[str]:
    """As options: the method, and those of its settings that are no defaults."""
    name = methods.key_of(method)
    words, plain = ["--method", name], methods.to_dict(methods.create(name))
    if isinstance(method, TargetMethod):
        words += ["--sparsity", f"{method.sparsity:g}"]
        for glob, target in method.own_targets:
            words += ["--sparsity-of", f"{glob}={target:g}"]
    if method.granularity.text != plain["granularity"]:
        words += ["--granularity", method.granularity.text]
    for key, value in methods.to_dict(method).items():
        simple = isinstance(value, int | float | str) and key not in ("sparsity", "granularity")
        if simple and value != plain[key]:
            words += ["--method-option", f"{key}={json.dumps(value).strip(chr(34))}"]
    return words


def _flag(field: dataclasses.Field[Any]) -> str:
    """The first long spelling."""
    flags = [flag for flag in field.metadata["flags"] if flag.startswith("--")]
    return flags[0] if flags else f"--{field.name.replace('_', '-')}"


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, tuple):
        numbers = all(isinstance(item, int | float) for item in value)
        if numbers:
            return [flag, ",".join(f"{item:g}" for item in value)]
        return [word for item in value for word in (flag, str(item))]
    return [flag, str(value)]
