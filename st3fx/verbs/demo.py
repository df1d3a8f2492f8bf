"""The main job on the data that comes with st3fx, from a model to its report: the verb ``demo``.

Two trainings that differ in nothing but the sparsity begin with the same weights and see the same
batches. What is told of them, and of all that follows, was measured in this run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from st3fx import methods
from st3fx.bench.result import BenchResult
from st3fx.bench.settings import BenchSettings
from st3fx.core.sites import SparsityPlan
from st3fx.export.result import ExportResult, FoldResult
from st3fx.files.manifest import Recipe
from st3fx.flops.report import FlopsReport
from st3fx.loading.spec import parse_spec
from st3fx.report.result import ReportResult
from st3fx.training.folder import RunFolder
from st3fx.training.report import Reporter
from st3fx.training.resolve import resolve, resume
from st3fx.training.result import TrainResult
from st3fx.verbs.analysis import analyze
from st3fx.verbs.benchmarking import benchmark
from st3fx.verbs.demo_folder import DemoFolder
from st3fx.verbs.demo_result import DemoResult, DemoSettings
from st3fx.verbs.deploy import export_spec, fold_spec
from st3fx.verbs.driver import train_spec
from st3fx.verbs.folded import Request
from st3fx.verbs.reporting import write_report
from st3fx.verbs.workflow import convert_spec, save_bundle

DATA, CHANNELS, SIZE, CLASSES = "fashion-mnist-mini", 1, 28, 10


class Watcher(Protocol):
    """Is told how the demo goes on."""

    def begin(self, stage: str, what: str) -> None:
        """A stage begins."""

    def progress(self, name: str) -> None:
        """A part of the stage begins."""

    def training(self) -> AbstractContextManager[Reporter]:
        """Who watches a training."""

    def end(self, stage: str, result: Any) -> None:
        """A stage is over; ``result`` is what its verb gave."""


def run_demo(
    folder: str | Path,
    watcher: Watcher,
    settings: DemoSettings | None = None,
    *,
    again: bool = False,
    force: bool = False,
) -> DemoResult:
    """Convert, train dense and sparse, fold, export, count, measure and report.

    Args:
        folder: Where everything is written.
        watcher: Is told how it goes on.
        settings: Which model, how long, how sparse.
        again: Go on with a demo that was stopped: with its trainings, bit for bit, and with what
            comes after them anew.
        force: Replace a demo that is already there.

    Raises:
        TrainError: When the folder cannot be taken.
        Interrupted: After a signal while it trains; the state was saved.
        St3fxError: As the verbs.
    """
    chosen, began = settings or DemoSettings(), time.perf_counter()
    place = DemoFolder(Path(folder), parse_spec(chosen.spec).name)
    place.check(again=again, force=force)
    demo = _Demo(chosen, place, watcher, again=again and place.begun, force=force)
    if not demo.again:
        demo.stage("convert", chosen.spec, demo.convert)
    dense = demo.stage("train dense", "", lambda: demo.train(place.dense, 0.0))
    sparse = demo.stage("train sparse", "", lambda: demo.train(place.sparse, chosen.sparsity))
    return DemoResult(
        folder=place.path,
        name=place.name,
        dense=dense,
        sparse=sparse,
        folded=demo.stage("fold", "to the values that are left", demo.fold),
        exported=demo.stage("export", "to ONNX", demo.export),
        counted=demo.stage("analyze", "every multiplication", demo.count),
        timed=demo.stage("bench", "one image at a time", demo.measure),
        report=demo.stage("report", "all of it on one page", demo.tell),
        seconds=time.perf_counter() - began,
        again=demo.again,
    )


Result = TypeVar("Result")


@dataclass(frozen=True)
class _Demo:
    """One demo: each method is the verb of a stage."""

    settings: DemoSettings
    place: DemoFolder
    watcher: Watcher
    again: bool
    force: bool

    @property
    def request(self) -> Request:
        """The sparse model, trained."""
        return Request(str(self.place.sparse.bundle), seed=self.settings.seed)

    def stage(self, name: str, what: str, verb: Callable[[], Result]) -> Result:
        """Do it, and tell the watcher before and after."""
        self.watcher.begin(name, what)
        result = verb()
        self.watcher.end(name, result)
        return result

    def convert(self) -> SparsityPlan:
        """The model that both trainings begin with, as a bundle."""
        method = methods.create("st3", sparsity=self.settings.sparsity)
        recipe = Recipe(
            spec=self.settings.spec,
            method=methods.to_dict(method),
            inputs=(f"2x{CHANNELS}x{SIZE}x{SIZE}",),
            seed=self.settings.seed,
            num_classes=CLASSES,
            in_channels=CHANNELS,
            image_size=SIZE,
        )
        converted = convert_spec(recipe, progress=self.watcher.progress)
        self.watcher.progress("write")
        save_bundle(converted.model, converted.recipe, self.place.bundle, force=self.force)
        return converted.plan

    def train(self, run: RunFolder, sparsity: float) -> TrainResult:
        """From the bundle to a trained model, or from the run's last checkpoint."""
        values = {
            "spec": str(self.place.bundle), "output_dir": str(run.path), "sparsity": sparsity,
            "data": DATA, **self.settings.training(),
        }  # fmt: skip
        checkpoint = run.last if self.again and run.last.is_file() else None
        chosen = resolve(values) if checkpoint is None else resume(run, values)
        # A run without a checkpoint had hardly begun: it is replaced.
        force = self.force or self.again
        with self.watcher.training() as report:
            return train_spec(chosen, checkpoint=checkpoint, force=force, report=report)

    def fold(self) -> FoldResult:
        """One bit for each weight, and the values that are left."""
        target = self.place.sparse.path / "model.st3w"
        return fold_spec(self.request, target, compact=True, progress=self.watcher.progress)

    def export(self) -> ExportResult:
        """An ONNX file, compared with the model."""
        target = self.place.sparse.path / "model.onnx"
        return export_spec(
            self.request, target, progress=self.watcher.progress, seed=self.settings.seed
        )

    def count(self) -> FlopsReport:
        """The multiplications of one image."""
        return analyze(self.request, batch=1, progress=self.watcher.progress)

    def measure(self) -> BenchResult:
        """The latency of one image; written where the report looks for it."""
        seconds, seed = self.settings.bench_seconds, self.settings.seed
        # Half a millisecond is too short for a second thread to help.
        how = BenchSettings(
            batch_sizes=(1,), threads=(1,), seconds=seconds, warmup=seconds / 4, seed=seed
        )
        result = benchmark(self.request, settings=how, progress=self.watcher.progress)
        result.write(self.place.sparse.bench)
        return result

    def tell(self) -> ReportResult:
        """The page; that of an earlier demo is replaced."""
        run, page = self.place.sparse.path, self.place.report
        return write_report(run, page, progress=self.watcher.progress)
