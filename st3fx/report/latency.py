"""The chart and the table of a benchmark."""

from __future__ import annotations

from st3fx.bench.result import BenchResult, BenchRow
from st3fx.report import text
from st3fx.report.chart import Axis, Bar, BarChart
from st3fx.report.markup import Markup
from st3fx.report.table import Column, plain_table


def latency_chart(bench: BenchResult) -> BarChart:
    """The median time of each variant, with a thin line up to the 95th percentile."""
    bars = tuple(
        Bar(
            label=label(row, bench),
            value=row.median_ms,
            text=text.milliseconds(row.median_ms),
            tip=_tip(row),
            spread=(row.median_ms, row.p95_ms),
            role="quiet" if row.ratio is None else "main",
        )
        for row in bench.rows
    )
    said = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    return BarChart(
        key="latency",
        title="Time of one call, ms",
        alt=f"Median time of one call: {said}",
        x=Axis("median, thin line to the 95th percentile, ms", low=0),
        bars=bars,
    )


def latency_table(bench: BenchResult) -> Markup:
    """A line for each variant."""
    columns = [
        Column("variant"), Column("runtime"), Column("batch", number=True),
        Column("threads", number=True), Column("median", number=True), Column("p95", number=True),
        Column("spread", number=True), Column("per second", number=True),
        Column("times as fast", number=True), Column("peak memory", number=True),
    ]  # fmt: skip
    rows = [
        (
            row.name, row.runtime, f"{row.batch or '–'}", f"{row.threads}",
            text.milliseconds(row.median_ms), text.milliseconds(row.p95_ms),
            text.milliseconds(row.spread_ms), f"{row.items_per_second:,.0f}", _ratio(row),
            "–" if row.peak_memory is None else text.size(row.peak_memory),
        )
        for row in bench.rows
    ]  # fmt: skip
    return plain_table(columns, rows)


def best(bench: BenchResult) -> tuple[BenchRow, BenchRow] | None:
    """The fastest variant that is not the baseline, with its baseline."""
    compared = [row for row in bench.rows if row.ratio is not None]
    if not compared:
        return None
    row = max(compared, key=lambda row: row.ratio.median if row.ratio else 0.0)
    same = (one for one in bench.rows if (one.batch, one.threads) == (row.batch, row.threads))
    return row, next(one for one in same if one.ratio is None)


def label(row: BenchRow, bench: BenchResult) -> str:
    """A variant's name, with batch size and threads where these differ."""
    parts = [row.name]
    if len({one.batch for one in bench.rows}) > 1:
        parts.append(f"batch {row.batch}")
    if len({one.threads for one in bench.rows}) > 1:
        parts.append(text.plural(row.threads, "thread"))
    return ", ".join(parts)


def _tip(row: BenchRow) -> str:
    lines = [f"{row.name}, {row.runtime}", f"batch {row.batch}, {row.threads} threads",
             f"median {text.milliseconds(row.median_ms)}, p95 {text.milliseconds(row.p95_ms)}",
             f"{row.iterations:,} calls in {row.rounds} rounds"]  # fmt: skip
    return "\n".join([*lines, *([f"{_ratio(row)} as fast"] if row.ratio else [])])


def _ratio(row: BenchRow) -> str:
    if row.ratio is None:
        return "baseline"
    low, high = text.three(row.ratio.low), text.three(row.ratio.high)
    return f"{text.times(row.ratio.median)} ({low} to {high})"
