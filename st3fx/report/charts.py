"""The charts of a report, from its facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from st3fx.flops.report import FlopsReport, LayerFlops
from st3fx.report import text
from st3fx.report.chart import Axis, Bar, BarChart, Histogram, LineChart, Series
from st3fx.report.facts import Layer, TrainingFacts
from st3fx.report.groups import grouped
from st3fx.report.histogram import Spread

MOST_POINTS = 400
"""Of a line; of a longer log every second, third, ... row is drawn, and the last."""

_EPOCH = Axis("epoch", low=0)
_WIDE_RATIO = 20


def training_charts(run: TrainingFacts) -> list[LineChart]:
    """What the log has over epochs: accuracy, sparsity, loss, threshold, learning rate, speed."""
    tests, steps = run.tests, run.steps
    charts = [
        _accuracy(tests, steps),
        _sparsity(tests, steps),
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


def _sparsity(tests: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> LineChart:
    rows = steps or tests
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
        f"{s.name} from {text.three(s.points[0][1])} to {text.three(s.points[-1][1])}{s.unit}"
        for s in shown
    )
    return LineChart(key, title, f"{title} over epochs: {ends}", _EPOCH, y, shown)


def _series(
    name: str, rows: Iterable[Mapping[str, Any]], key: str, *, percent: bool = False, **style: Any
) -> Series:
    """One column of the log, without the rows that do not have it."""
    scale = 100 if percent else 1
    points = [(row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None]
    step = -(-len(points) // MOST_POINTS) or 1
    # Counted from the end, so that the last is there.
    thinned = points[::-1][::step][::-1]
    return Series(name, tuple(thinned), unit=" %" if percent else "", **style)


def sparsity_chart(layers: Sequence[Layer], overall: float) -> BarChart:
    """Zeros of each layer, or block where there are many."""
    by_name = {layer.site.name: layer for layer in layers}
    bars = []
    for name, inner in grouped(list(by_name)).items():
        members = [by_name[one] for one in inner]
        weights = sum(layer.site.numel for layer in members)
        nonzeros = sum(layer.nonzeros for layer in members)
        share = 1 - nonzeros / weights
        tip = f"{_title(name, inner)}\n{weights - nonzeros:,} of {weights:,} weights are zero"
        bars.append(Bar(name, 100 * share, text.percent(share), tip))
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
        tip = f"{_title(name, inner)}\n{left:,} of {dense:,} MACs left ({text.percent(share)})"
        bars.append(Bar(name, float(left), text.count(left), tip, whole=float(dense)))
    return BarChart(
        key="layer-macs",
        title="Multiplications by layer",
        alt=_extremes("Multiplications left", bars),
        x=Axis("MACs of one call", low=0),
        bars=tuple(bars),
        legend=("left", "dense"),
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
        line_name="" if spread.threshold is None else f"threshold ±{text.three(spread.threshold)}",
    )


def _title(name: str, inner: Sequence[str]) -> str:
    return name if len(inner) == 1 else f"{name}: {text.plural(len(inner), 'layer')}"


def _extremes(what: str, bars: Sequence[Bar]) -> str:
    if not bars:
        return f"{what}: no layers"
    low, high = min(bars, key=lambda bar: bar.value), max(bars, key=lambda bar: bar.value)
    return (
        f"{what} of {text.plural(len(bars), 'row')}: least {low.text} in {low.label}, "
        f"most {high.text} in {high.label}"
    )
