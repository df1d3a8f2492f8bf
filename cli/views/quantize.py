"""What a quantization did, as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from st3fx.cli.views.lowered import lowered_lines
from st3fx.cli.views.outcome import size_table
from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import shape_text
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.quantization.quantize_result import Accuracy, LayerRow, QuantizeResult

ROWS = 12
"""Layers that are listed, those that cost most; --json has all."""


def print_quantize(result: QuantizeResult) -> None:
    """The layers that cost most, sizes, zeros, accuracy."""
    out = console()
    rows = sorted(result.layers, key=_order)[:ROWS]
    out.print(_layers_table(rows))
    if len(result.layers) > ROWS:
        more = f"... and {len(result.layers) - ROWS} more of {len(result.layers)} (--json has all)"
        out.print(Text(more), soft_wrap=True)
    out.print(size_table(result.sizes))
    for line in _lines(result):
        out.print(Text(line), soft_wrap=True)


def _order(row: LayerRow) -> tuple[bool, float]:
    """Layers in fp32 first, then those that would gain most there."""
    return bool(row.integer_zeros is not None), -(row.gain or 0.0)


def _layers_table(rows: Iterable[LayerRow]) -> Table:
    numbers = ("shape", "zeros", "rounded to zero", "gain in fp32")
    return make_table(
        ("layer", "op", *numbers, "is"), map(_cells, rows), numbers=numbers, title="layers"
    )


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.name.removesuffix(".weight"),
        row.op,
        shape_text(row.shape),
        f"{row.zeros / row.weights:.1%}" if row.weights else "",
        f"{row.rounded:,}" if row.integer_zeros is not None else "",
        "" if row.gain is None else f"{row.gain:+.1f} dB",
        "int8" if row.integer_zeros is not None else f"fp32: {row.reason}",
    )


def _lines(result: QuantizeResult) -> Iterable[str]:
    floats = len(result.layers) - len(result.integer)
    rest = f", {floats} in fp32" if floats else ""
    yield (
        f"{plural(len(result.integer), 'layer')} in integers{rest}; ranges: {_ranges(result)}; "
        f"weights: {result.weight_range}"
    )
    share = result.zeros / result.elements if result.elements else 0.0
    yield (
        f"{result.zeros:,} of {result.elements:,} weights in integers were zero ({share:.2%}), and "
        f"all are; {result.rounded:,} more were rounded to it"
    )
    if result.sqnr is not None:
        db = "equal" if math.isinf(result.sqnr) else f"{result.sqnr:.1f} dB of signal over noise"
        seen = "" if result.compared_new else ", from which ranges were taken too"
        yield f"outputs against fp32: {db}, over {plural(result.compared, 'sample')}{seen}"
    if result.held_out is not None:
        yield (
            f"held out{_samples(result.held_out)}: {_accuracy(result.held_out)} "
            f"(--max-drop {result.max_drop:g}, {plural(result.tried, 'file')} tried)"
        )
    if result.finetuned is not None:
        done = result.finetuned
        yield (
            f"finetuned for {plural(done.epochs, 'epoch')}, {plural(done.steps, 'step')} on "
            f"{done.device}: loss {done.first:.3g} to {done.last:.3g}"
        )
    if result.calibrated is not None:
        yield f"int8 before: {100 * result.calibrated:.2f} %"
    if result.accuracy is not None:
        yield f"test{_samples(result.accuracy)}: {_accuracy(result.accuracy)}"
    if result.sparse is not None:
        yield from lowered_lines(result.sparse)
        if result.sparse.path is None:
            yield "so there is no file with our kernels"
    if result.sparse_accuracy is not None:
        yield f"test with our kernels: int8 {100 * result.sparse_accuracy:.2f} %"
    if result.meets is False:
        yield (
            f"the test data loses more than the {result.max_drop:g} points that were allowed: the "
            "samples that chose the layers show less than it; ask for a smaller --max-drop"
        )
    names = ", ".join(str(path) for path in result.files)
    yield f"wrote {names} (opset {result.opset}) in {result.seconds:.1f} s"


def _ranges(result: QuantizeResult) -> str:
    if result.calibration == "dynamic":
        return "each call's own"
    return f"{result.calibration} over {plural(result.calibration_samples, 'sample')}"


def _samples(accuracy: Accuracy) -> str:
    return "" if accuracy.samples is None else f", {plural(accuracy.samples, 'sample')}"


def _accuracy(accuracy: Accuracy) -> str:
    change = f"{abs(accuracy.drop):.2f} points {'lost' if accuracy.drop > 0 else 'gained'}"
    if not accuracy.drop:
        change = "nothing lost"
    return f"fp32 {100 * accuracy.fp32:.2f} %, int8 {100 * accuracy.int8:.2f} %, {change}"
