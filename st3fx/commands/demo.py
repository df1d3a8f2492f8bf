"""The main job on the data that comes with st3fx, from a model to its report: the verb ``demo``.

Two trainings that differ in nothing but the sparsity begin with the same weights and see the same
batches. What is told of them, and of all that follows, was measured in this run.

What lies where in the folder of a demo, and when it may be written to.

What a demo is made of, and what came of it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from st3fx import methods
from st3fx.bench.bench_result import BenchResult, BenchRow
from st3fx.bench.variant import BenchSettings
from st3fx.commands.analyze import analyze
from st3fx.commands.bench import benchmark
from st3fx.commands.convert import convert_spec, save_bundle
from st3fx.commands.export import export_spec
from st3fx.commands.fold import fold_spec
from st3fx.commands.models import Request
from st3fx.commands.quantize import Images, quantize_spec, subject
from st3fx.commands.report import write_report
from st3fx.commands.train import train_spec
from st3fx.errors import TrainError, quoted
from st3fx.export.export_result import ExportResult, FoldResult
from st3fx.files.atomic import check_place, tidy
from st3fx.files.bundle import MANIFEST, read_bundle
from st3fx.files.manifest import Recipe
from st3fx.flops.flops_report import FlopsReport
from st3fx.loading.spec import parse_spec
from st3fx.plan.sites import SparsityPlan
from st3fx.quantization.quantize_result import QuantizeResult
from st3fx.quantization.settings import Settings as QuantizeSettings
from st3fx.report.facts import ReportResult
from st3fx.sparsity.granularity import parse
from st3fx.training.folder import RunFolder, find_run
from st3fx.training.recipes import resolve, resume
from st3fx.training.report import Reporter, TrainResult
from st3fx.training.settings import read_run


@dataclass(frozen=True)
class DemoFolder:
    """Paths of what a demo writes.

    Attributes:
        path: The folder.
        name: Of the model.
    """

    path: Path
    name: str

    @property
    def bundle(self) -> Path:
        """The converted model, before training."""
        return self.path / f"{self.name}.st3fx"

    @property
    def dense(self) -> RunFolder:
        """The training without sparsity."""
        return RunFolder(self.path / "dense")

    @property
    def sparse(self) -> RunFolder:
        """The training in which the sparsity rises; what is made of its model lies there too."""
        return RunFolder(self.path / "sparse")

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether a demo is here."""
        return (self.bundle / MANIFEST).is_file()

    def check(self, *, again: bool, force: bool) -> None:
        """Fail early if a demo cannot be written here. Writes nothing.

        Args:
            again: Whether a demo that is here is gone on with.
            force: Whether it is replaced.

        Raises:
            TrainError: When something else is here, or a demo and neither is asked for.
        """
        if not self.path.exists():
            check_place(self.path, TrainError)
            return
        if not self.path.is_dir():
            raise TrainError(f"{self.path} is a file: name a folder for the demo")
        tidy(self.path)  # killed while it converted, a demo has not begun
        if not any(self.path.iterdir()):
            return
        if not self.begun:
            raise TrainError(f"{self.path} is not empty and no demo: choose another --output-dir")
        if not (again or force):
            raise TrainError(
                f"{self.path} holds a demo: go on with it by st3fx demo --resume -o "
                f"{quoted(self.path)}, choose another --output-dir, or replace it by --force"
            )


@dataclass(frozen=True)
class DemoSettings:
    """How large a demo is.

    The defaults are the shortest training found in which a small residual network learns well; the
    images are not shifted or mirrored, which pays only in longer ones.

    Attributes:
        spec: A reference model.
        method: How weights become zero: the one that leaves most to blocks.
        granularity: What does so together: what one instruction multiplies in integers.
        sparsity: Share of zeros in the end.
        epochs: Of each training.
        batch_size: Images per step.
        lr: Peak learning rate.
        seed: For weights and shuffling.
        bench_seconds: Of timed calls for each variant.
    """

    spec: str = "st3fx:resnet20"
    method: str = "feather"
    granularity: str = "block:4"
    sparsity: float = 0.9
    epochs: int = 6
    batch_size: int = 32
    lr: float = 0.05
    seed: int | None = None
    bench_seconds: float = 3.0

    def training(self) -> dict[str, Any]:
        """Settings that both trainings share."""
        return {
            "epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "nesterov": True,
            "augment": False, "channels_last": True, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True)
class DemoResult:
    """What a demo measured.

    Attributes:
        folder: Where everything lies.
        name: Of the model.
        dense: The training without sparsity.
        sparse: The training with it.
        folded: The weights that are left, in a compact file.
        exported: The ONNX file with its checks.
        quantized: The one in 8-bit integers, and that with our kernels.
        counted: Multiplications of one image.
        timed: Latency of one image.
        report: The page.
        seconds: For all of it, or for what was left of a demo that was gone on with.
        again: Whether it was.
    """

    folder: Path
    name: str
    dense: TrainResult
    sparse: TrainResult
    folded: FoldResult
    exported: ExportResult
    quantized: QuantizeResult
    counted: FlopsReport
    timed: BenchResult
    report: ReportResult
    seconds: float
    again: bool = False

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the weights, dense and in the compact file."""
        before, after = self.folded.sizes
        return before.raw, after.raw

    @property
    def fastest(self) -> BenchRow:
        """Of the sparse model's rows in fp32, that with kernels that skip zeros if there is one."""
        floats = [row for row in self.timed.rows[1:] if not row.integers]
        return max(floats, key=lambda row: row.skips_zeros)

    @property
    def integers(self) -> tuple[BenchRow, ...]:
        """The rows in integers: dense, and by kernels that skip zeros where these gain."""
        return tuple(row for row in self.timed.rows if row.integers)

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        dense_bytes, sparse_bytes = self.bytes
        return {
            "folder": str(self.folder),
            "model": self.name,
            "accuracy": {
                "dense": self.dense.scores.top1,
                "sparse": self.sparse.scores.top1,
                "sparse_int8": self.quantized.accuracy and self.quantized.accuracy.int8,
            },
            "sparsity": self.sparse.sparsity,
            "macs": {"dense": self.counted.dense_macs, "sparse": self.counted.sparse_macs},
            "bytes": {
                "dense": dense_bytes,
                "sparse": sparse_bytes,
                "sparse_int8": self.quantized.sizes[-1].raw,
            },
            "latency_ms": {row.name: row.median_ms for row in self.timed.rows},
            "onnx": str(self.exported.path),
            "report": str(self.report.path),
            "seconds": self.seconds,
        }


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
    """Convert, train dense and sparse, fold, export, quantize, count, measure and report.

    Args:
        folder: Where everything is written.
        watcher: Is told how it goes on.
        settings: Which model, how long, how sparse. A seed of ``None`` is 0, or that of the demo
            that is gone on with.
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
    again = again and place.begun
    demo = _Demo(_seeded(chosen, place, again=again), place, watcher, again=again, force=force)
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
        quantized=demo.stage("quantize", "to 8-bit integers", demo.quantize),
        counted=demo.stage("analyze", "every multiplication", demo.count),
        timed=demo.stage("bench", "one image at a time", demo.measure),
        report=demo.stage("report", "all of it on one page", demo.tell),
        seconds=time.perf_counter() - began,
        again=demo.again,
    )


def _seeded(settings: DemoSettings, place: DemoFolder, *, again: bool) -> DemoSettings:
    """The settings with a seed.

    Raises:
        TrainError: When the demo that is gone on with has another one.
    """
    if not again:
        return dataclasses.replace(settings, seed=settings.seed or 0)
    seed = read_bundle(place.bundle).manifest.recipe.seed
    if settings.seed not in (None, seed):
        raise TrainError(
            f"{place.path} holds a demo with --seed {seed}, which --resume cannot change to "
            f"{settings.seed}: leave --seed out, or choose another --output-dir"
        )
    return dataclasses.replace(settings, seed=seed)


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
    def seed(self) -> int:
        """For everything."""
        return self.settings.seed or 0

    @property
    def request(self) -> Request:
        """The sparse model, trained."""
        return Request(str(self.place.sparse.bundle), seed=self.seed)

    def stage(self, name: str, what: str, verb: Callable[[], Result]) -> Result:
        """Do it, and tell the watcher before and after."""
        self.watcher.begin(name, what)
        result = verb()
        self.watcher.end(name, result)
        return result

    def convert(self) -> SparsityPlan:
        """The model that both trainings begin with, as a bundle."""
        chosen = self.settings
        granularity = parse(chosen.granularity)
        method = methods.create(chosen.method, sparsity=chosen.sparsity, granularity=granularity)
        recipe = Recipe(
            spec=self.settings.spec,
            method=methods.to_dict(method),
            inputs=(f"2x{CHANNELS}x{SIZE}x{SIZE}",),
            seed=self.seed,
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
        checkpoint = self._checkpoint(run)
        chosen = resolve(values)
        if checkpoint is not None:
            # The bundle may have another path from where one is now.
            same = {name: value for name, value in values.items() if name != "spec"}
            chosen = dataclasses.replace(resume(run, same), spec=chosen.spec)
        # A run without a checkpoint had hardly begun: it is replaced.
        force = self.force or self.again
        with self.watcher.training() as report:
            return train_spec(chosen, checkpoint=checkpoint, force=force, report=report)

    def _checkpoint(self, run: RunFolder) -> Path | None:
        """Of the run, if it belongs to this demo: not to one that this one is to replace."""
        if not (self.again and run.settings.is_file()):
            return None
        _, checkpoint = find_run(run.path)
        seed = read_run(run.settings).seed
        return checkpoint if seed == self.seed else None

    def fold(self) -> FoldResult:
        """One bit for each weight, and the values that are left."""
        target = self.place.sparse.path / "model.st3w"
        return fold_spec(self.request, target, compact=True, progress=self.watcher.progress)

    def export(self) -> ExportResult:
        """An ONNX file, compared with the model."""
        target = self.place.sparse.path / "model.onnx"
        return export_spec(self.request, target, progress=self.watcher.progress, seed=self.seed)

    def quantize(self) -> QuantizeResult:
        """The same in 8-bit integers, for any runtime and for our kernels, scored."""
        run = self.place.sparse
        request = Request(str(run.path), seed=self.seed)
        how = QuantizeSettings(rank=False, sparse_kernels=True)
        return quantize_spec(
            subject(request, {}), run.int8, how, Images(), progress=self.watcher.progress
        )

    def count(self) -> FlopsReport:
        """The multiplications of one image."""
        return analyze(self.request, batch=1, progress=self.watcher.progress)

    def measure(self) -> BenchResult:
        """The latency of one image; written where the report looks for it."""
        seconds, seed = self.settings.bench_seconds, self.seed
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
