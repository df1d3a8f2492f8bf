"""The charts as PNG, drawn by matplotlib: one each, and several of a run in one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from st3fx.report.chart import (
    HUES,
    Axis,
    BarChart,
    Chart,
    FlowChart,
    Histogram,
    LineChart,
    make_scale,
    tick_text,
)
from st3fx.report.charts import sparsity_chart, training_charts
from st3fx.report.facts import TrainingFacts
from st3fx.report.markup import short_name
from st3fx.training.report import TrainResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

COLORS = {"main": "#0b6fae", "quiet": "#9aa9b5", "goal": "#b8500a", "pruned": "#c9d1d7"}
"""As the page has them in its light scheme."""

_HUES = ("#0b6fae", "#b8500a", "#1b7f4b", "#8b3fa0", "#c2185b", "#6b6200", "#00808a", "#6d4c41")
_DASHES = ("-", "--", ":")

_INK, _SOFT = "#1c2126", "#5a6570"
_DPI = 150
_WIDTHS = {"main": 2.0, "quiet": 1.4, "goal": 6.0}
_TALLEST = 60.0
"""Inches that a picture has at most; rows of more are drawn closer."""


def to_png(chart: Chart, software: str) -> bytes:
    """The picture of a chart.

    Args:
        chart: What to draw.
        software: What the file says that it was made by.
    """
    figure = _figure(*_size(chart))
    _draw(chart, figure.add_subplot())
    return _bytes(figure, software)


def run_picture(
    result: TrainResult, run: TrainingFacts, sizes: Mapping[str, int], software: str
) -> bytes:
    """The picture that a training leaves beside its run: its course, and the zeros of each layer.

    Args:
        result: Of the run.
        run: Its settings and its log.
        sizes: Site -> weights.
        software: What the file says that it was made by.
    """
    course = {chart.key: chart for chart in training_charts(run)}
    counts = {name: (round(share * sizes[name]), sizes[name])
              for name, share in result.layers.items()}  # fmt: skip
    layers = sparsity_chart(counts, result.sparsity)
    figure = _figure(13.0, max(8.4, _size(layers)[1]))
    grid = figure.add_gridspec(3, 2)
    for place, key in enumerate(("loss", "accuracy", "sparsity")):
        if key in course:
            _draw(course[key], figure.add_subplot(grid[place, 0]))
    _draw(layers, figure.add_subplot(grid[:, 1]))
    title = f"{result.name}: {100 * result.scores.top1:.1f} % top-1 at "
    title += f"{100 * result.sparsity:.1f} % sparsity"
    if result.best is not None and result.best[0] > result.scores.top1:
        title += f", best {100 * result.best[0]:.1f} % after epoch {result.best[1]}"
    figure.suptitle(title, fontsize=14, fontweight="bold", parse_math=False)
    return _bytes(figure, software)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, which would look for a screen and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (takes a second)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _bytes(figure: Figure, software: str) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI, metadata={"Software": software})
    return picture.getvalue()


def _draw(chart: Chart, axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=_SOFT, labelsize=9, length=0)
    draw: dict[type, Callable[[Any, Axes], None]] = {
        LineChart: _lines, BarChart: _bars, Histogram: _histogram, FlowChart: _flow,
    }  # fmt: skip
    draw[type(chart)](chart, axes)
    # A name is text, whatever dollar signs are in it.
    axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", parse_math=False)
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1 or (handles and isinstance(chart, BarChart)):
        columns = min(len(handles), _KEYS)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0),
                    ncols=columns, borderaxespad=0.1)  # fmt: skip
        pad = 26 + 14 * (-(-len(handles) // columns) - 1)
        axes.set_title(chart.title, loc="left", fontsize=12, fontweight="bold", pad=pad,
                       parse_math=False)  # fmt: skip


_KEYS = 3
"""Names beside each other in a legend."""


def _plain(name: str) -> str:
    """A name for a legend, in which matplotlib would read dollar signs as mathematics."""
    return short_name(name, 50).replace("$", r"\$")


def _size(chart: Chart) -> tuple[float, float]:
    rows = {BarChart: "bars", FlowChart: "rows"}.get(type(chart))
    if rows is None:
        return 7.0, 4.2
    return 7.0, min(_TALLEST, 1.4 + 0.22 * len(getattr(chart, rows)))


def _lines(chart: LineChart, axes: Axes) -> None:
    for series in chart.series:
        axes.plot(
            *zip(*series.points, strict=True), label=_plain(series.name),
            color=COLORS[series.role] if series.hue is None else _HUES[series.hue % HUES],
            linestyle=_DASHES[(series.hue or 0) // HUES % 3],
            marker="o" if series.dots or len(series.points) == 1 else None, markersize=5,
            linewidth=_WIDTHS[series.role], alpha=0.4 if series.role == "goal" else 1,
            clip_on=False,
        )  # fmt: skip
        for point, label in zip(series.points, series.labels, strict=False):
            axes.annotate(label, point, (4, -12), textcoords="offset points", fontsize=8,
                          color=_SOFT, parse_math=False)  # fmt: skip
    if chart.y.log:
        axes.set_yscale("log")
    points = [point for series in chart.series for point in series.points]
    _ticks(axes.xaxis, chart.x, [x for x, _ in points])
    _ticks(axes.yaxis, chart.y, [y for _, y in points])
    _finish(axes, chart.x.label, "both")


def _bars(chart: BarChart, axes: Axes) -> None:
    for place, bar in enumerate(chart.bars):
        if bar.whole is not None:
            axes.barh(place, bar.whole, height=0.72, fill=False, edgecolor=COLORS["quiet"],
                      label="_")  # fmt: skip
        axes.barh(place, bar.value, height=0.72, color=COLORS[bar.role])
        end = max(bar.value, bar.whole or 0, *(bar.spread or (0,)))
        if bar.spread is not None:
            axes.plot(bar.spread, (place, place), color=_INK, linewidth=1.2)
        # Bars up to the end of the axis leave no room beside them.
        inside = chart.x.high is not None and bar.value > 0.15 * chart.x.high
        axes.annotate(
            bar.text, (bar.value if inside else end, place), va="center", fontsize=8,
            xytext=(-4 if inside else 4, 0), textcoords="offset points",
            ha="right" if inside else "left", color="white" if inside else _INK,
        )  # fmt: skip
    if chart.line is not None:
        axes.axvline(chart.line[0], color=COLORS["goal"], linestyle="--", label=chart.line[1])
    for name, style in zip(
        chart.legend, ({"color": COLORS["main"]}, {"fill": False, "edgecolor": COLORS["quiet"]}),
        strict=False,
    ):  # fmt: skip
        axes.barh(0, 0, label=name, **style)  # type: ignore[arg-type]
    names = [short_name(bar.label) for bar in chart.bars]
    axes.set_yticks(range(len(names)), names, fontsize=8, color=_INK, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    ends = [max(bar.value, bar.whole or 0, *(bar.spread or (0,))) for bar in chart.bars]
    _ticks(axes.xaxis, chart.x, [0.0, *ends])
    _finish(axes, chart.x.label, "x")


def _histogram(chart: Histogram, axes: Axes) -> None:
    left, width = chart.edges[:-1], chart.edges[1] - chart.edges[0]
    axes.bar(left, chart.kept, width, bottom=chart.pruned, align="edge", color=COLORS["main"],
             label="kept")  # fmt: skip
    axes.bar(left, chart.pruned, width, align="edge", color=COLORS["pruned"], label="pruned")
    for index, at in enumerate(chart.lines):
        label = chart.line_name if index == 0 else "_"
        axes.axvline(at, color=COLORS["goal"], linestyle="--", label=label)
    _ticks(axes.xaxis, chart.x, chart.edges)
    totals = [kept + pruned for kept, pruned in zip(chart.kept, chart.pruned, strict=True)]
    _ticks(axes.yaxis, Axis("", low=0), totals)
    _finish(axes, chart.x.label, "y")


def _flow(chart: FlowChart, axes: Axes) -> None:
    from matplotlib.patches import PathPatch  # noqa: PLC0415
    from matplotlib.path import Path  # noqa: PLC0415

    step = min(1.0, 14 / chart.lanes)
    places = [(row.lane * step, float(index)) for index, row in enumerate(chart.rows)]
    for source, target in chart.edges:
        (x1, y1), (x2, y2) = places[source], places[target]
        points = [(x1, y1), (x1, y2 - 1), (x1, y2 - 0.5), (x2, y2 - 0.5), (x2, y2)]
        codes = [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        axes.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor=COLORS["quiet"]))
    words = chart.lanes * step + 0.4
    for row, (x, y) in zip(chart.rows, places, strict=True):
        site = row.kind == "site"
        face = COLORS["main"] if site else "white"
        axes.plot(x, y, "o", markersize=6 if site else 4, markerfacecolor=face, zorder=3,
                  markeredgecolor="white" if site else COLORS["quiet"])  # fmt: skip
        share = "" if row.sparsity is None else f"   {100 * row.sparsity:.1f} %"
        axes.text(words, y, f"{row.name.removesuffix('.weight')}  {row.detail}{share}", fontsize=8,
                  va="center", color=_INK if site else _SOFT, parse_math=False)  # fmt: skip
    axes.set_xlim(-0.6, words + 10)
    axes.set_ylim(len(chart.rows) - 0.4, -0.6)
    axes.set_axis_off()


def _ticks(axis: XAxis | YAxis, data: Axis, values: Iterable[float]) -> None:
    """The ticks and ends that the page has."""
    scale = make_scale(data, values, 0, 1)
    axis.set_ticks(scale.ticks, [tick_text(tick) for tick in scale.ticks], minor=False)
    axis.set_ticks([], minor=True)
    axis.axes.set(**{f"{axis.axis_name}lim": (scale.low, scale.high)})


def _finish(axes: Axes, label: str, grid: Any) -> None:
    axes.set_xlabel(label, loc="right", fontsize=9, color=_SOFT, parse_math=False)
    axes.grid(visible=True, axis=grid, color="#eceeef")
    axes.set_axisbelow(True)
