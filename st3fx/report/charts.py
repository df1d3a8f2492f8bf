"""The charts of a report, from its facts; layers of a large model are put together by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from st3fx.bench.bench_result import BenchResult, BenchRow, Ratio
from st3fx.flops.flops_report import FlopsReport, LayerFlops
from st3fx.report import markup
from st3fx.report.chart import Axis, Bar, BarChart, Histogram, LineChart, Series
from st3fx.report.facts import TrainingFacts
from st3fx.report.histogram import Spread
from st3fx.report.section import Column, Table

MOST = 60
"""Rows of a chart that can still be read."""


def grouped(names: Sequence[str], most: int = MOST) -> dict[str, list[str]]:
    """Names by the longest prefix that leaves at most ``most`` groups, in their order.

    Args:
        names: Full names of weights.
        most: Groups at most, unless there are more top-level modules than that.

    Returns:
        Group -> its names; a group of one has the full name.
    """
    deepest = max((name.count(".") for name in names), default=0)
    groups: dict[str, list[str]] = {name: [name] for name in names}
    while len(groups) > most and deepest > 0:
        groups = {}
        for name in names:
            groups.setdefault(".".join(name.split(".")[:deepest]), []).append(name)
        deepest -= 1
    return {inner[0] if len(inner) == 1 else name: inner for name, inner in groups.items()}


def latency_chart(bench: BenchResult) -> BarChart:
    """The median time of each variant, with a thin line up to the 95th percentile."""
    bars = tuple(
        Bar(
            label=label(row, bench),
            value=row.median_ms,
            text=markup.milliseconds(row.median_ms),
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


def latency_table(bench: BenchResult) -> Table:
    """A line for each variant."""
    integers = any(row.int8_ratio for row in bench.rows)
    columns = [
        Column("variant"), Column("runtime"), Column("batch", number=True),
        Column("threads", number=True), Column("median", number=True), Column("p95", number=True),
        Column("spread", number=True), Column("per second", number=True),
        Column("times as fast", number=True),
        *([Column("times dense INT8", number=True)] if integers else []),
        Column("peak memory", number=True),
    ]  # fmt: skip
    rows = [
        (
            row.name, row.runtime, f"{row.batch or '–'}", f"{row.threads}",
            markup.milliseconds(row.median_ms), markup.milliseconds(row.p95_ms),
            markup.milliseconds(row.spread_ms), f"{row.items_per_second:,.0f}",
            _ratio(row.ratio), *([_ratio(row.int8_ratio)] if integers else []),
            "–" if row.peak_memory is None else markup.size(row.peak_memory),
        )
        for row in bench.rows
    ]  # fmt: skip
    return Table(columns, rows)


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
        parts.append(markup.plural(row.threads, "thread"))
    return ", ".join(parts)


def _tip(row: BenchRow) -> str:
    lines = [f"{row.name}, {row.runtime}", f"batch {row.batch}, {row.threads} threads",
             f"median {markup.milliseconds(row.median_ms)}, p95 {markup.milliseconds(row.p95_ms)}",
             f"{row.iterations:,} calls in {row.rounds} rounds"]  # fmt: skip
    return "\n".join([*lines, *([f"{_ratio(row.ratio)} as fast"] if row.ratio else [])])


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "baseline"
    low, high = markup.three(ratio.low), markup.three(ratio.high)
    return f"{markup.times(ratio.median)} ({low} to {high})"


MOST_POINTS = 400
"""A line has no more; of a longer log every second, third, ... row is drawn, and the last."""

_EPOCH = Axis("epoch", low=0)
_WIDE_RATIO = 20


def training_charts(run: TrainingFacts) -> list[LineChart]:
    """What the log has over epochs: accuracy, sparsity, loss, threshold, learning rate, speed."""
    tests, steps = run.tests, run.steps
    charts = [
        _accuracy(tests, steps),
        _sparsity(tests, steps, drawn=bool(run.settings.draw_sparsity)),
        _loss(tests, steps),
        _chart("threshold", "Global threshold", Axis("threshold", low=0),
               _series("threshold", steps, "threshold")),
        _chart("learning-rate", "Learning rate", Axis("learning rate", low=0),
               _series("learning rate", steps, "lr")),
        _chart("rate", "Training images per second", Axis("images per second", low=0),
               _series("images per second", steps, "rate")),
    ]  # fmt: skip
    return [chart for chart in charts if chart.series]


def _accuracy(tests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> LineChart:
    return _chart(
        "accuracy", "Top-1 accuracy, %", Axis("top-1 accuracy, %"),
        _series("training", steps, "accuracy", role="quiet", percent=True),
        _series("test", tests, "top1", dots=True, percent=True),
    )  # fmt: skip


def _sparsity(
    tests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]], *, drawn: bool
) -> LineChart:
    rows = steps or tests
    if drawn:
        return _chart(
            "sparsity", "Sparsity, %", Axis("sparsity, %", low=0, high=100),
            _series("drawn for a step", steps, "sparsity", role="quiet", percent=True),
            _series("schedule", rows, "wanted", role="goal", percent=True),
            _series("evaluated", tests, "sparsity", dots=True, percent=True),
        )  # fmt: skip
    return _chart(
        "sparsity", "Sparsity, %", Axis("sparsity, %", low=0, high=100),
        _series("schedule", rows, "wanted", role="goal", percent=True),
        _series("measured", rows, "sparsity", percent=True),
    )  # fmt: skip


def _loss(tests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> LineChart:
    values = [row["loss"] for row in (*steps, *tests)]
    log = bool(values) and min(values) > 0 and max(values) > _WIDE_RATIO * min(values)
    return _chart(
        "loss", "Loss", Axis("loss", log=log),
        _series("training", steps, "loss", role="quiet"),
        _series("test", tests, "loss", dots=True),
    )  # fmt: skip


def _chart(key: str, title: str, y: Axis, *series: Series) -> LineChart:
    shown = tuple(one for one in series if one.points)
    ends = "; ".join(
        f"{s.name} from {markup.three(s.points[0][1])} to {markup.three(s.points[-1][1])}{s.unit}"
        for s in shown
    )
    return LineChart(key, title, f"{title} over epochs: {ends}", _EPOCH, y, shown)


def _series(
    name: str, rows: Iterable[Mapping[str, Any]], key: str, *, percent: bool = False, **style: Any
) -> Series:
    """One column of the log, without the rows that do not have it."""
    scale = 100 if percent else 1
    points = [(row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None]
    return Series(name, tuple(thinned(points)), unit=" %" if percent else "", **style)


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most :data:`MOST_POINTS` of them, the last among these."""
    step = -(-len(points) // MOST_POINTS) or 1
    # Counted from the end, so that the last is there.
    return points[::-1][::step][::-1]


def sparsity_chart(layers: Mapping[str, tuple[int, int]], overall: float) -> BarChart:
    """Zeros of each layer, or block where there are many.

    Args:
        layers: Site -> weights that are zero, and all.
        overall: Share of zeros in all sites.
    """
    bars = []
    for name, inner in grouped(list(layers)).items():
        zeros, weights = (sum(sizes) for sizes in zip(*(layers[one] for one in inner), strict=True))
        share = zeros / weights
        tip = f"{_title(name, inner)}\n{zeros:,} of {weights:,} weights are zero"
        bars.append(Bar(name, 100 * share, markup.percent(share), tip))
    return BarChart(
        key="layer-sparsity",
        title="Sparsity by layer, %",
        alt=_extremes("Sparsity", bars),
        x=Axis("zeros, %", low=0, high=100),
        bars=tuple(bars),
        line=(100 * overall, "all sites"),
    )


def macs_chart(report: FlopsReport) -> BarChart:
    """Multiplications left of each layer, or block, in the outline of the dense ones."""
    bars = []
    for name, inner in grouped(list(report.by_layer)).items():
        members: list[LayerFlops] = [report.by_layer[one] for one in inner]
        dense = sum(row.dense_macs for row in members)
        left = sum(row.sparse_macs for row in members)
        share = left / dense if dense else 1.0
        tip = f"{_title(name, inner)}\n{left:,} of {dense:,} MACs left ({markup.percent(share)})"
        bars.append(Bar(name, float(left), markup.count(left), tip, whole=float(dense)))
    return BarChart(
        key="layer-macs",
        title="Multiplications by layer",
        alt=_extremes("Multiplications left", bars),
        x=Axis("MACs of one call", low=0),
        bars=tuple(bars),
        legend=("left", "dense"),
    )


def blocks_chart(report: FlopsReport) -> BarChart:
    """Blocks of the sites by how many of their weights are left.

    Args:
        report: A count with blocks.
    """
    bars = []
    for left, blocks in enumerate(report.block_fill):
        share = blocks / report.blocks if report.blocks else 0.0
        tip = f"{blocks:,} of {report.blocks:,} blocks have {markup.plural(left, 'weight')} left"
        bars.append(Bar(f"{left} left", 100 * share, markup.percent(share), tip))
    said = "; ".join(f"{bar.text} have {bar.label}" for bar in bars)
    return BarChart(
        key="blocks",
        title=f"Blocks of {report.block} consecutive inputs, %",
        alt=f"Blocks by the weights that are left in them: {said}",
        x=Axis("of all blocks, %", low=0, high=100),
        bars=tuple(bars),
    )


def weights_chart(spread: Spread) -> Histogram:
    """Latent weights, what the threshold prunes apart from what it keeps."""
    counts = spread.counts
    unit = {"weight": "latent weight", "threshold": "latent weight over its layer's threshold"}
    lines = () if spread.threshold is None else (-spread.threshold, spread.threshold)
    kept, pruned = sum(counts.kept), sum(counts.pruned)
    return Histogram(
        key="weights",
        title="Latent weights of all sites",
        alt=f"Histogram of the latent weights: {pruned:,} pruned around zero, {kept:,} kept",
        x=Axis(unit[spread.unit], low=-counts.reach, high=counts.reach),
        edges=counts.edges,
        kept=counts.kept,
        pruned=counts.pruned,
        lines=lines,
        line_name=""
        if spread.threshold is None
        else f"threshold ±{markup.three(spread.threshold)}",
    )


def _title(name: str, inner: Sequence[str]) -> str:
    return name if len(inner) == 1 else f"{name}: {markup.plural(len(inner), 'layer')}"


def _extremes(what: str, bars: Sequence[Bar]) -> str:
    if not bars:
        return f"{what}: no layers"
    low, high = min(bars, key=lambda bar: bar.value), max(bars, key=lambda bar: bar.value)
    return (
        f"{what} of {markup.plural(len(bars), 'row')}: least {low.text} in {low.label}, "
        f"most {high.text} in {high.label}"
    )
