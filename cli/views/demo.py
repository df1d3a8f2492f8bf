"""How a demo looks: a line for each stage and each epoch, and a table at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from rich.text import Text

from st3fx.cli.views.display import LiveReport, PlainReport, make_report
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import duration, percent, size_text, three_digits
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.bench.bench_result import BenchResult
    from st3fx.commands.demo import DemoResult
    from st3fx.export.export_result import ExportResult, FoldResult
    from st3fx.flops.flops_report import FlopsReport
    from st3fx.plan.sites import SparsityPlan
    from st3fx.quantization.quantize_result import QuantizeResult
    from st3fx.report.facts import ReportResult
    from st3fx.training.report import TrainResult, TrainRow

_WIDTH = len("train sparse")


class EpochReport(PlainReport):
    """One line per epoch: a demo is no log."""

    def train(self, row: TrainRow) -> None:
        """Show nothing."""


class DemoView:
    """Prints a line for each stage when it is over, and shows what is under way on a terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._out = console(file)
        self._progress: Progress | None = None

    def begin(self, stage: str, what: str) -> None:
        """A spinner for the stage; a training has its own."""
        if stage.startswith("train"):
            self._out.print(Text(stage, style="bold"))
            return
        self._progress = Progress()
        self._progress.__enter__()
        self._progress(f"{stage}: {what}")

    def progress(self, name: str) -> None:
        """Say beside the spinner what is under way."""
        if self._progress is not None:
            self._progress(name)

    @contextlib.contextmanager
    def training(self) -> Iterator[LiveReport | PlainReport]:
        """A live panel on a terminal, a line for each epoch anywhere else."""
        report = make_report(self._file)
        with EpochReport(self._file) if isinstance(report, PlainReport) else report as shown:
            yield shown

    def end(self, stage: str, result: Any) -> None:
        """What the stage gave, in a line."""
        self.close()
        self._out.print(
            Text.assemble((stage.ljust(_WIDTH), "bold"), "  ", LINES[stage](result)), soft_wrap=True
        )

    def close(self) -> None:
        """Take the spinner away."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None


def _converted(plan: SparsityPlan) -> str:
    return (
        f"{len(plan.sites)} sites with {plan.numel:,} of {plan.total_parameters:,} parameters; "
        "outputs and gradients equal the original's bit for bit"
    )


def _trained(result: TrainResult) -> str:
    zeros = f" at {percent(result.sparsity)} sparsity" if result.sparsity else ""
    return (
        f"top-1 {percent(result.scores.top1)}{zeros}, {result.steps:,} steps in "
        f"{duration(result.seconds)}"
    )


def _folded(result: FoldResult) -> str:
    before, after = result.sizes
    return (
        f"{result.path.name}: {size_text(before.raw)} of weights in {size_text(after.raw)}, "
        f"{before.raw / after.raw:.1f} times smaller"
    )


def _exported(result: ExportResult) -> str:
    worst = max(row.relative for row in result.parity)
    return (
        f"{result.path.name}: {result.zeros.zeros:,} zeros as in the folded model, ONNX Runtime "
        f"within {worst:.0e} of PyTorch"
    )


def _quantized(result: QuantizeResult) -> str:
    top1 = "" if result.accuracy is None else f"top-1 {percent(result.accuracy.int8)} in "
    size, sparse = result.sizes[-1], result.sparse
    kernels = ""
    if sparse is not None and sparse.path is not None:
        rows = sparse.kernels
        kernels = f", {rows.ours} of {plural(len(rows.rows), 'layer')} by INT8 kernels"
    return f"{size.name}: {top1}8-bit integers{kernels}, {size_text(size.raw)}"


def _counted(result: FlopsReport) -> str:
    return (
        f"{result.dense_macs:,} multiplications an image, {result.sparse_macs:,} without the zeros"
    )


def _timed(result: BenchResult) -> str:
    rows = (f"{row.name} {three_digits(row.median_ms)} ms" for row in result.rows)
    return f"{', '.join(rows)} an image"


def _reported(result: ReportResult) -> str:
    return f"{len(result.filled)} of {len(result.sections)} sections, {size_text(result.size)}"


LINES: dict[str, Callable[[Any], str]] = {
    "convert": _converted,
    "train dense": _trained,
    "train sparse": _trained,
    "fold": _folded,
    "export": _exported,
    "quantize": _quantized,
    "analyze": _counted,
    "bench": _timed,
    "report": _reported,
}
"""Stage -> its result in words, in the order of the work."""


def print_demo(result: DemoResult) -> None:
    """Dense against sparse, and where to read on."""
    out = console()
    numbers = ("dense", "sparse")
    out.print()
    out.print(make_table(("", *numbers, ""), rows(result), numbers=numbers, whole=numbers))
    for sentence in result.timed.verdict:
        out.print(Text(sentence), soft_wrap=not out.is_terminal)
    when = "here, the last of it in" if result.again else "now, in"
    out.print(
        Text(f"\nall of it was measured {when} {duration(result.seconds)}; read on in "),
        Text(str(result.report.path), style="bold"),
        sep="", soft_wrap=True,
    )  # fmt: skip


def rows(result: DemoResult) -> Iterator[tuple[str, str, str, str]]:
    """Name, dense, sparse, and what lies between them."""
    dense, sparse = result.dense.scores.top1, result.sparse.scores.top1
    yield "accuracy", percent(dense), percent(sparse), f"{100 * (sparse - dense):+.1f} points"
    yield "zeros", percent(result.dense.sparsity), percent(result.sparse.sparsity), ""
    macs = result.counted.dense_macs, result.counted.sparse_macs
    yield "MACs an image", f"{macs[0]:,}", f"{macs[1]:,}", _fewer(*macs, "fewer")
    before, after = result.bytes
    yield "bytes of weights", size_text(before), size_text(after), _fewer(before, after, "smaller")
    first, best = result.timed.rows[0], result.fastest
    times = f"{three_digits(first.median_ms)} ms", f"{three_digits(best.median_ms)} ms"
    ratio = "" if best.ratio is None else f"{best.ratio.median:.2f} times as fast"
    yield f"latency, {plural(first.threads, 'thread')}", *times, ratio
    if result.quantized.accuracy is not None:
        accuracy = result.quantized.accuracy.int8
        yield "accuracy, INT8", "", percent(accuracy), f"{100 * (accuracy - dense):+.1f} points"
    yield from _integers(result)


def _integers(result: DemoResult) -> Iterator[tuple[str, str, str, str]]:
    """The latency in integers, against dense in integers and in fp32."""
    kernels = [row for row in result.integers if row.skips_zeros]
    for dense in result.integers[:1]:
        times = [f"{three_digits(row.median_ms)} ms" for row in (dense, *kernels[:1])]
        gains = [
            f"{row.int8_ratio.median:.2f} times as fast, {row.ratio.median:.2f} against fp32"
            for row in kernels[:1] if row.int8_ratio and row.ratio
        ]  # fmt: skip
        sparse, gain = (*times[1:], "")[0], (*gains, "")[0]
        yield f"latency, INT8, {plural(dense.threads, 'thread')}", times[0], sparse, gain


def _fewer(dense: int, sparse: int, word: str) -> str:
    return f"{dense / sparse:.1f} times {word}" if sparse else ""
