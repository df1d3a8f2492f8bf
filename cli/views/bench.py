"""A benchmark, and the measured constants of the cost model, as a person reads them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import size_text, three_digits
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.bench.bench_result import BenchResult, BenchRow, Ratio
    from st3fx.commands.calibrate import CalibrationResult


def print_bench(result: BenchResult) -> None:
    """A table for each batch size and number of threads, what they show, how it was measured."""
    out = console()
    for _, group in itertools.groupby(result.rows, key=lambda row: (row.batch, row.threads)):
        out.print(_table(list(group)))
    for sentence in result.verdict:
        out.print(Text(sentence), soft_wrap=not out.is_terminal)
    out.print(Text(f"\n{_method(result)}", style="dim"), soft_wrap=not out.is_terminal)
    if result.command:
        out.print(Text(result.command, style="dim"), soft_wrap=True)


def _table(rows: Sequence[BenchRow]) -> Table:
    first = rows[0]
    title = f"batch {first.batch}, {plural(first.threads, 'thread')}, times in ms"
    ratios = [f"x {first.name}"]
    if integers := any(row.int8_ratio for row in rows):
        ratios.append("x dense INT8")
    numbers = ("median", "p95", "spread", "items/s", *ratios, "memory")
    cells = (tuple(_cells(row, integers=integers)) for row in rows)
    return make_table(
        ("", *numbers), cells, numbers=numbers, whole=numbers, title=title,
        spare=("memory", "spread", "items/s", "p95"),
    )  # fmt: skip


def _cells(row: BenchRow, *, integers: bool) -> Iterable[str]:
    yield row.name
    yield from map(three_digits, (row.median_ms, row.p95_ms, row.spread_ms))
    yield three_digits(row.items_per_second)
    yield "1" if row.ratio is None else _ratio(row.ratio)
    if integers:
        yield "1" if row.int8_ratio is None else _ratio(row.int8_ratio)
    yield "?" if row.peak_memory is None else size_text(row.peak_memory)


def _ratio(ratio: Ratio) -> str:
    """The median, and the quartiles: ``1.51 (1.48–1.55)``."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _method(result: BenchResult) -> str:
    """How it was measured, and on what."""
    about, machine = result.settings, result.environment
    calls = {row.iterations for row in result.rows}
    count = f"{min(calls):,}" if len(calls) == 1 else f"{min(calls):,} to {max(calls):,}"
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in result.rows))
    providers = ", ".join(dict.fromkeys(row.provider for row in result.rows if row.provider))
    kernels = f"kernels: {machine['kernels']}" if machine.get("kernels") else ""
    vectors = ", ".join([*machine["vectors"][:1], *([kernels] if kernels else [])])
    vectors = f" ({vectors})" if vectors else ""
    return (
        f"{result.model}: {count} calls each after {about['warmup']:g} s of warm-up; spread is the "
        f"interquartile range.{_comparison(result)} {runtimes} ({providers}) on "
        f"{machine['cpu']}{vectors}, {plural(machine['cores'], 'core')}."
    )


def _comparison(result: BenchResult) -> str:
    if all(row.ratio is None for row in result.rows):
        return ""
    first = result.rows[0]
    named = first.name in ("dense", "dense INT8")
    dense = f" dense: {result.settings['dense']}." if named else ""
    return (
        " Interleaved in rounds: x is how many times as fast, the median of the rounds with their "
        f"quartiles.{dense}"
    )


def print_calibration(result: CalibrationResult) -> None:
    """The constants beside the defaults, how well they explain the times, where they are kept."""
    out = console()
    title = "cost model: nanoseconds, one thread"
    defaults = dataclasses.asdict(result.defaults)
    rows = [(name, f"{1e9 * value:.3g}", f"{1e9 * defaults[name]:.3g}")
            for name, value in dataclasses.asdict(result.costs).items()]  # fmt: skip
    numbers = ("here", "default")
    out.print(make_table(("", *numbers), rows, numbers=numbers, title=title))
    line = (
        f"{result.layers} layers measured on {result.machine['cpu']} ({result.machine['isa']}); "
        f"half of them are within {result.error:.0%} of the model; wrote {result.path}"
    )
    out.print(Text(line), soft_wrap=True)
