"""The page of a comparison, section by section."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from st3fx.report import markup
from st3fx.report.chart import Axis, Bar, BarChart, LineChart, Series
from st3fx.report.charts import label, thinned
from st3fx.report.comparison import Compared, Comparison, LayerRow, Outcome
from st3fx.report.facts import Layer, TrainingFacts, convert_command, train_command
from st3fx.report.section import Block, Cell, Code, Column, Items, Section, Table

_NONE = "–"
_DOTS = 40
"""Evaluations of a run up to which each is marked."""

_WIDE_RATIO = 20


def make_sections(found: Comparison) -> tuple[Section, ...]:
    """All sections, those without data too."""
    return tuple(make(found) for make in (results, training, settings, layers, latency, reproduce))


def results(found: Comparison) -> Section:
    """What came of each run."""
    rows = found.outcomes
    columns = [Column("", sort=False), Column("run")]
    columns += [Column(name, number=number) for name, number, _, _ in _RESULTS]
    cells = [
        (
            Cell(f"{index}"),
            Cell(row.run),
            *(Cell(said(row), value(row)) for _, _, said, value in _RESULTS),
        )
        for index, row in enumerate(rows, 1)
    ]
    lines = [f"{row.run}: {note}" for row in rows for note in row.notes]
    lines += [f"{path} is left out: {reason}" for path, reason in found.left_out.items()]
    lines += remarks(found)
    rest: list[Block] = [Table(columns, cells, "runs", "")]
    rest += [Items(lines)] if lines else []
    charts = [chart for chart in (_trade(found, "sparsity"), _trade(found, "macs")) if chart]
    return Section("results", "What came of it", "", tuple(charts), (), tuple(rest))


def remarks(found: Comparison) -> list[str]:
    """Where numbers of runs do not belong together."""
    data = {row.data for row in found.outcomes if row.top1 is not None}
    lines = []
    if len(data) > 1:
        lines.append(
            f"the runs were tested on different data ({', '.join(sorted(map(str, data)))}): "
            "their accuracies and losses cannot be compared"
        )
    times = [row.latency for row in found.outcomes if row.latency is not None]
    if len({time.cpu for time in times}) > 1:
        lines.append("the benchmarks ran on different processors: times cannot be compared")
    elif len({(time.batch, time.threads) for time in times}) > 1:
        lines.append("the fastest variants have different batch sizes or numbers of threads")
    return lines


def training(found: Comparison) -> Section:
    """Curves laid over each other."""
    charts = curves(found)
    if not charts:
        return Section("training", "Training", missing="None of the runs has rows in its log yet.")
    lead = f"One colour for each run, over {found.over}s; tests are on data that no run trains on."
    return Section("training", "Training", lead, tuple(charts))


def curves(found: Comparison) -> list[LineChart]:
    """Accuracy, loss, sparsity, threshold and learning rate of all runs."""
    return [chart for make in _CURVES if (chart := _curve(found, *make)) is not None]


def _curve(
    found: Comparison, key: str, title: str, axis: Axis, kind: str, column: str, scale: float
) -> LineChart | None:
    lines = []
    for hue, run in enumerate(found.runs):
        rows = [] if run.facts.training is None else _rows(run.facts.training, kind)
        points = [(row[found.over], scale * row[column]) for row in rows
                  if row.get(column) is not None]  # fmt: skip
        dots = kind == "eval" and len(points) <= _DOTS
        unit = " %" if scale == 100 else ""
        if points:
            lines.append(Series(run.label, tuple(thinned(points)), unit=unit, dots=dots, hue=hue))
    if not lines:
        return None
    values = [y for line in lines for _, y in line.points]
    if column == "loss" and min(values) > 0 and max(values) > _WIDE_RATIO * min(values):
        axis = dataclasses.replace(axis, log=True)
    ends = "; ".join(
        f"{line.name} from {markup.three(line.points[0][1])} to "
        f"{markup.three(line.points[-1][1])}{line.unit}" for line in lines
    )  # fmt: skip
    over = Axis(found.over, low=0)
    return LineChart(key, title, f"{title} over {found.over}s: {ends}", over, axis, tuple(lines))


def _rows(run: TrainingFacts, kind: str) -> Sequence[Mapping[str, Any]]:
    return run.tests if kind == "eval" else run.steps


_CURVES: tuple[tuple[str, str, Axis, str, str, float], ...] = (
    ("accuracy", "Test accuracy, top-1, %", Axis("top-1 accuracy, %"), "eval", "top1", 100),
    ("test-loss", "Test loss", Axis("loss"), "eval", "loss", 1),
    ("training-loss", "Training loss", Axis("loss"), "train", "loss", 1),
    ("sparsity", "Sparsity, %", Axis("sparsity, %", low=0, high=100), "train", "sparsity", 100),
    ("threshold", "Global threshold", Axis("threshold", low=0), "train", "threshold", 1),
    ("learning-rate", "Learning rate", Axis("learning rate", low=0), "train", "lr", 1),
)  # fmt: skip


def settings(found: Comparison) -> Section:
    """What differs."""
    title, differ = "What differs in the settings", found.differences
    if not differ:
        said = "Nothing that decides about a run differs: the runs have the same settings."
        return Section("settings", title, said)
    lead = (
        "Settings that are the same in all runs are left out, and so are those that a run may "
        "change while it goes on, such as its folder."
    )
    names = [run.label for run in found.runs]
    columns = [Column("setting"), *(Column(name) for name in names)]
    rows = [
        (name, *(setting_text(values[run]) if run in values else _NONE for run in names))
        for name, values in differ.items()
    ]
    return Section("settings", title, lead, rest=(Table(columns, rows),))


def setting_text(value: object) -> str:
    """A setting as a person reads it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "not set" if value in (None, "") else str(value)


def layers(found: Comparison) -> Section:
    """Zeros and multiplications of the layers that runs share."""
    title, rows = "Layer by layer", found.layers
    known = [run for run in found.runs if run.facts.model is not None]
    if not rows:
        why = (
            "No two of the runs have a layer of the same name and shape: their models are others."
            if len(known) > 1
            else "Fewer than two of the runs have written a model yet."
        )
        return Section("layers", title, missing=why)
    lead = "Layers of the same name and shape in two runs or more, in the order of execution."
    charts = (
        _by_layer(found.runs, rows, "layer-sparsity", "Sparsity by layer, %",
                  Axis("sparsity, %", low=0, high=100), _zeros),
        _by_layer(found.runs, rows, "layer-macs", "Multiplications left by layer",
                  Axis("MACs of one call", low=0), _macs),
    )  # fmt: skip
    table = _layer_table(known, rows)
    return Section("layers", title, lead, tuple(c for c in charts if c.series), rest=(table,))


def _by_layer(
    runs: Sequence[Compared],
    rows: Sequence[LayerRow],
    key: str,
    title: str,
    y: Axis,
    value: Callable[[Layer], float | None],
) -> LineChart:
    lines = []
    for hue, run in enumerate(runs):
        points = [
            (float(index), found) for index, row in enumerate(rows, 1)
            if run.label in row.runs and (found := value(row.runs[run.label])) is not None
        ]  # fmt: skip
        if points:
            lines.append(Series(run.label, tuple(points), dots=len(rows) <= _DOTS, hue=hue))
    ends = "; ".join(
        f"{line.name} from {markup.three(min(y for _, y in line.points))} to "
        f"{markup.three(max(y for _, y in line.points))}" for line in lines
    )  # fmt: skip
    x = Axis("layer, as numbered below", low=0)
    return LineChart(key, title, f"{title}: {ends}", x, y, tuple(lines))


def _zeros(layer: Layer) -> float:
    return 100 * layer.sparsity


def _macs(layer: Layer) -> float | None:
    return None if layer.flops is None else float(layer.flops.sparse_macs)


def _layer_table(runs: Sequence[Compared], rows: Sequence[LayerRow]) -> Table:
    columns = [Column("", number=True), Column("layer"), Column("shape", sort=False)]
    for run in runs:
        columns += [Column(f"{run.label}: zeros", number=True),
                    Column("MACs left", number=True)]  # fmt: skip
    lines = []
    for index, row in enumerate(rows, 1):
        cells = [Cell(f"{index}", index), Cell(row.name), Cell(markup.shape(row.shape))]
        for run in runs:
            layer = row.runs.get(run.label)
            macs = None if layer is None else _macs(layer)
            cells += [
                Cell(_NONE, -1) if layer is None
                else Cell(markup.percent(layer.sparsity), layer.sparsity),
                Cell(_NONE, -1) if macs is None else Cell(markup.count(macs), macs),
            ]  # fmt: skip
        lines.append(cells)
    return Table(columns, lines, "layers")


def latency(found: Comparison) -> Section:
    """What benchmarks measured."""
    title = "How fast they are"
    timed = [run for run in found.runs if run.facts.bench is not None]
    if not timed:
        missing = (
            "No run has a benchmark: `st3fx bench RUN/model.st3fx -x RUN/bench.json` writes one."
        )
        return Section("latency", title, missing=missing)
    bars, rows = [], []
    for run in timed:
        bench = run.facts.bench
        assert bench is not None
        for row in bench.rows:
            name = f"{run.label}: {label(row, bench)}"
            tip = f"{name}\n{row.runtime}\nbatch {row.batch}, {row.threads} threads"
            bars.append(Bar(name, row.median_ms, markup.milliseconds(row.median_ms), tip,
                            spread=(row.median_ms, row.p95_ms),
                            role="quiet" if row.ratio is None else "main"))  # fmt: skip
            rows.append((
                run.label, row.name, row.runtime, f"{row.batch or _NONE}", f"{row.threads}",
                markup.milliseconds(row.median_ms), markup.milliseconds(row.p95_ms),
                "baseline" if row.ratio is None else markup.times(row.ratio.median),
                str(bench.environment.get("cpu", _NONE)),
            ))  # fmt: skip
    said = "; ".join(f"{bar.label} {bar.text}" for bar in bars)
    axis = Axis("median, thin line to the 95th percentile, ms", low=0)
    chart = BarChart("latency", "Time of one call, ms", f"Median time of one call: {said}", axis,
                     tuple(bars))  # fmt: skip
    numbers = ("batch", "threads", "median", "p95", "times as fast")
    heads = ("run", "variant", "runtime", *numbers, "processor")
    table = Table([Column(name, number=name in numbers) for name in heads], rows)
    return Section("latency", title, "", (chart,), rest=(table,))


def reproduce(found: Comparison) -> Section:
    """A command for each run."""
    lines = []
    for run in found.runs:
        if run.facts.training is not None:
            lines.append(train_command(run.facts.training.settings))
        elif run.facts.model is not None:
            lines.append(convert_command(run.facts.model.recipe, run.facts.source))
    return Section("reproduce", "How to do them again", rest=(Code("\n".join(lines)),))


def _trade(found: Comparison, over: str) -> LineChart | None:
    """Accuracy over what is left, a dot for each run."""
    dots = []
    for hue, row in enumerate(found.outcomes):
        x = row.sparsity if over == "sparsity" else row.macs_left
        if x is not None and row.top1 is not None:
            point = (100 * x, 100 * row.top1)
            dots.append(Series(row.run, (point,), unit=" %", dots=True, hue=hue))
    places = [dot.points[0][0] for dot in dots]
    if len(dots) < 2 or max(places) - min(places) < 0.05:
        return None
    title, axis = {
        "sparsity": ("Accuracy over sparsity, %", Axis("sparsity, %")),
        "macs": ("Accuracy over multiplications left, %", Axis("MACs left, %")),
    }[over]
    said = "; ".join(
        f"{dot.name} {markup.three(dot.points[0][1])} % at {markup.three(dot.points[0][0])} %"
        for dot in dots
    )
    return LineChart(
        f"accuracy-over-{over}", title, f"{title}: {said}", axis, Axis("top-1 accuracy, %"),
        tuple(dots),
    )  # fmt: skip


def percent_or_none(value: float | None) -> str:
    """``61.7 %``, or a dash."""
    return _NONE if value is None else markup.percent(value)


def _size(row: Outcome) -> str:
    return _NONE if row.bytes is None else markup.size(row.bytes)


def latency_text(row: Outcome) -> str:
    """``1.6 ms (1.25 ×)``, or a dash."""
    if row.latency is None:
        return _NONE
    return f"{markup.milliseconds(row.latency.ms)} ({markup.times(row.latency.ratio)})"


def macs_text(row: Outcome) -> str:
    """``12.3 M (24.1 %)``, or a dash."""
    if row.macs is None or row.macs_left is None:
        return _NONE
    return f"{markup.count(row.macs)} ({markup.percent(row.macs_left)})"


def epochs_text(row: Outcome) -> str:
    """``3 of 10``, or a dash."""
    if row.of_epochs is None:
        return _NONE
    return f"{row.epochs or 0:.3g} of {row.of_epochs}"


_RESULTS: tuple[
    tuple[str, bool, Callable[[Outcome], str], Callable[[Outcome], float | str | None]], ...
] = (
    ("model", False, lambda row: row.model, lambda row: row.model),
    ("method", False, lambda row: row.method or _NONE, lambda row: row.method or ""),
    ("target", True, lambda row: percent_or_none(row.target), lambda row: _low(row.target)),
    ("epochs", True, epochs_text, lambda row: _low(row.epochs)),
    ("sparsity", True, lambda row: percent_or_none(row.sparsity), lambda row: _low(row.sparsity)),
    ("top-1", True, lambda row: percent_or_none(row.top1), lambda row: _low(row.top1)),
    ("best", True, lambda row: percent_or_none(row.best), lambda row: _low(row.best)),
    ("dense", True, lambda row: percent_or_none(row.dense), lambda row: _low(row.dense)),
    ("MACs left", True, macs_text, lambda row: _low(row.macs)),
    ("size", True, _size, lambda row: _low(row.bytes)),
    ("latency", True, latency_text, lambda row: _low(row.latency.ms if row.latency else None)),
)
"""Head, whether it holds numbers, text, and what it is sorted by."""


def _low(value: float | None) -> float:
    return -1.0 if value is None else value


def headline(found: Comparison) -> list[tuple[str, str, str]]:
    """The best of what can be compared: name, value, and which run that is."""
    rows, figures = found.outcomes, []
    if len({row.data for row in rows if row.top1 is not None}) == 1:
        figures.append(_most("best accuracy", rows, lambda r: r.top1, percent_or_none))
    if any(row.sparsity is not None for row in rows):
        figures.append(_most("highest sparsity", rows, lambda r: r.sparsity, percent_or_none))
    if any(row.macs is not None for row in rows):
        fewest = _most(
            "fewest MACs", rows, lambda r: None if r.macs is None else -r.macs,
            lambda value: markup.count(-value),
        )  # fmt: skip
        figures.append(fewest)
    timed = [row for row in rows if row.latency is not None]
    if timed and len({row.latency.cpu for row in timed if row.latency}) == 1:
        row = min(timed, key=lambda row: row.latency.ms if row.latency else 0)
        figures.append(("lowest latency", latency_text(row), row.run))
    return figures


def _most(
    name: str,
    rows: Sequence[Outcome],
    value: Callable[[Outcome], float | None],
    text: Callable[[float], str],
) -> tuple[str, str, str]:
    """The largest value, and all runs that have it as it is written."""
    known = {row.run: found for row in rows if (found := value(row)) is not None}
    said = text(max(known.values()))
    return name, said, markup.listed([run for run, one in known.items() if text(one) == said], 3)


def about(found: Comparison) -> str:
    """How many runs, of which models."""
    models = list(dict.fromkeys(row.model for row in found.outcomes))
    said = f"{markup.plural(len(found.runs), 'run')} of {markup.listed(models)}"
    return said + (f"; {len(found.left_out)} left out" if found.left_out else "")


def heading(found: Comparison) -> str:
    """The names of the runs, of many the first."""
    return markup.listed([run.label for run in found.runs], 4)
