"""A benchmark, as a person reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.views.outcome import size_text
from st3fx.cli.views.tables import console

if TYPE_CHECKING:
    from st3fx.bench.result import BenchResult, BenchRow, Ratio


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
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    title = f"batch {first.batch}, {threads}, times in ms"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("median", "p95", "spread", "items/s", f"x {first.name}", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: BenchRow) -> Iterable[str]:
    yield row.name
    yield from map(three_digits, (row.median_ms, row.p95_ms, row.spread_ms))
    yield three_digits(row.items_per_second)
    yield "1" if row.ratio is None else _ratio(row.ratio)
    yield "?" if row.peak_memory is None else size_text(row.peak_memory)


def _ratio(ratio: Ratio) -> str:
    """The median, and the quartiles: ``1.51 (1.48–1.55)``."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def three_digits(value: float) -> str:
    """``0.0752``, ``28.3``, ``1,088``: three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _method(result: BenchResult) -> str:
    """How it was measured, and on what."""
    about, machine = result.settings, result.environment
    calls = {row.iterations for row in result.rows}
    count = f"{min(calls):,}" if len(calls) == 1 else f"{min(calls):,} to {max(calls):,}"
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in result.rows))
    providers = ", ".join(dict.fromkeys(row.provider for row in result.rows if row.provider))
    vectors = f" ({machine['vectors'][0]})" if machine["vectors"] else ""
    return (
        f"{result.model}: {count} calls each after {about['warmup']:g} s of warm-up; spread is the "
        f"interquartile range.{_comparison(result)} {runtimes} ({providers}) on "
        f"{machine['cpu']}{vectors}, {_cores(machine['cores'])}."
    )


def _comparison(result: BenchResult) -> str:
    if all(row.ratio is None for row in result.rows):
        return ""
    first = result.rows[0]
    dense = f" dense: {result.settings['dense']}." if first.name == "dense" else ""
    return (
        " Interleaved in rounds: x is how many times as fast, the median of the rounds with their "
        f"quartiles.{dense}"
    )


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
