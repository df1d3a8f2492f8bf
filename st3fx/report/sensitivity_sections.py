"""What it costs to prune each layer alone, as a section of a run's page or a page of its own."""

from __future__ import annotations

from st3fx.report import markup
from st3fx.report.chart import HUES, Axis, Bar, BarChart, LineChart, Series
from st3fx.report.facts import Facts
from st3fx.report.section import Cell, Column, Note, Section, Table
from st3fx.training.sensitivity import LayerSensitivity, SensitivityResult

MOST = 40
"""Layers that have a bar, those that cost most."""


def sensitivity_section(facts: Facts) -> Section | None:
    """The section of a run's report; ``None`` where nothing was measured."""
    return None if facts.sensitivity is None else make_section(facts.sensitivity)


def make_section(found: SensitivityResult) -> Section:
    """Curves of the layers that cost most, a bar for each layer, and all numbers."""
    rows = found.by_cost
    before = "dense" if not found.sparsity else f"at {markup.percent(found.sparsity)} sparsity"
    lead = (
        f"Each layer alone is pruned by {found.method} while the others stay as they are, and the "
        f"model is scored on {found.samples:,} test samples"
        f"{f' of {found.data}' if found.data else ''}. Before, {before}, the loss is "
        f"{markup.three(found.loss)} and the accuracy {markup.percent(found.top1)}. The cost of a "
        "layer is the mean rise of the loss."
    )
    charts = (_curves(found, rows[:HUES]), _bars(rows[:MOST]))
    rest = [Note(f"It took {found.seconds:,.0f} seconds.")] if found.seconds >= 1 else []
    return Section("sensitivity", "What each layer costs", lead, charts,
                   rest=(_table(found), *rest))  # fmt: skip


def _curves(found: SensitivityResult, rows: tuple[LayerSensitivity, ...]) -> LineChart:
    lines = tuple(
        Series(
            markup.short_name(layer.name),
            tuple((100 * point.sparsity, 100 * point.top1) for point in layer.points),
            unit=" %", dots=True, hue=hue,
        ) for hue, layer in enumerate(rows)
    )  # fmt: skip
    ends = "; ".join(f"{line.name} {markup.three(line.points[-1][1])} %" for line in lines)
    title = "Accuracy with one layer pruned, %"
    if len(rows) < len(found.layers):
        title = f"Accuracy with one layer pruned, %: the {len(rows)} that cost most"
    return LineChart(
        "layer-sensitivity", title, f"{title}: at the highest sparsity {ends}",
        Axis("sparsity of the layer, %", high=100), Axis("top-1 accuracy, %"), lines,
    )  # fmt: skip


def _bars(rows: tuple[LayerSensitivity, ...]) -> BarChart:
    bars = tuple(
        Bar(layer.name, max(0.0, layer.rise), signed(layer.rise),
            f"{layer.name}\nthe loss rises by {signed(layer.rise)} on average\n"
            f"the accuracy drops by {points(layer.drop)} on average")
        for layer in rows
    )  # fmt: skip
    said = "; ".join(f"{bar.label} {bar.text}" for bar in bars[:5])
    title = "What each layer costs"
    return BarChart("layer-cost", title, f"{title}, most first: {said}",
                    Axis("mean rise of the loss", low=0), bars)  # fmt: skip


def _table(found: SensitivityResult) -> Table:
    columns = [
        Column("", number=True), Column("layer"), Column("shape", sort=False),
        Column("cost", number=True), Column("weights", number=True), Column("MACs", number=True),
    ]  # fmt: skip
    for sparsity in found.sparsities:
        columns.append(Column(f"loss at {markup.percent(sparsity, 0)}", number=True))
        columns.append(Column("accuracy", number=True))
    lines = []
    for index, layer in enumerate(found.by_cost, 1):
        weights, macs = found.saved(layer, layer.weights)
        cells = [
            Cell(f"{index}", index), Cell(layer.name), Cell(markup.shape(layer.shape)),
            Cell(signed(layer.rise), layer.rise), Cell(markup.percent(weights), weights),
            Cell(markup.percent(macs), macs),
        ]  # fmt: skip
        for point in layer.points:
            cells.append(Cell(signed(point.loss_rise), point.loss_rise))
            cells.append(Cell(points(-point.top1_drop), -point.top1_drop))
        lines.append(cells)
    return Table(columns, lines, "layers")


def signed(value: float) -> str:
    """``+0.123``, ``−0.004``, ``0``; a true minus sign."""
    text = markup.three(abs(value))
    if not float(text):
        return "0"
    return f"{'+' if value > 0 else '−'}{text}"


def points(share: float) -> str:
    """``−1.2``: points of a hundred, with a sign."""
    return f"{100 * share:+.1f}".replace("-", "−")
