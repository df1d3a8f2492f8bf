"""A benchmark, as a person reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.summary import size_text
from st3fx.cli.tables import console

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
    table = Table(
        title=f"batch {first.batch}, {threads}", title_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    table.add_column("", overflow="fold")
    for name in ("median", "p95", "spread", "items/s", f"x {first.name}", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: BenchRow) -> Iterable[str]:
    yield row.name
    yield from map(milliseconds, (row.median_ms, row.p95_ms, row.spread_ms))
    yield rate(row.items_per_second)
    yield "1" if row.ratio is None else _ratio(row.ratio)
    yield "?" if row.peak_memory is None else size_text(row.peak_memory)


def _ratio(ratio: Ratio) -> str:
    """The median, and the quartiles: ``1.51 (1.48–1.55)``."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def milliseconds(value: float) -> str:
    """``0.752 ms``, ``28.3 ms``, ``1.24 s``: three digits."""
    return f"{value / 1000:.3g} s" if value >= 999.5 else f"{value:.3g} ms"


def rate(value: float) -> str:
    """``1,088``, ``35.3``, ``0.80``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _method(result: BenchResult) -> str:
    """How it was measured, and on what."""
    first, about, machine = result.rows[0], result.settings, result.environment
    calls = {row.iterations for row in result.rows}
    count = f"{min(calls):,}" if len(calls) == 1 else f"{min(calls):,} to {max(calls):,}"
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in result.rows))
    providers = ", ".join(dict.fromkeys(row.provider for row in result.rows if row.provider))
    vectors = f" ({machine['vectors'][0]})" if machine["vectors"] else ""
    dense = f" dense: {about['dense']}." if first.name == "dense" and len(result.rows) > 1 else ""
    return (
        f"{result.model}: {count} calls each, interleaved, after {about['warmup']:g} s of "
        f"warm-up; spread is the interquartile range, x the median of the rounds' ratios with "
        f"their quartiles.{dense} {runtimes} ({providers}) on {machine['cpu']}{vectors}, "
        f"{machine['cores']} cores."
    )
