"""The page of a sweep: accuracy against what it costs, at each sparsity."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from st3fx.report import markup
from st3fx.report.chart import Axis, LineChart, Series
from st3fx.report.page import make_document
from st3fx.report.section import Block, Code, Column, Items, Note, Section, Table, Terms
from st3fx.report.sweep_result import Speed, SweepResult, SweepRow, share

GENERATOR = "st3fx sweep"
"""Stands at the beginning of a page, which may be replaced by a later one."""

CHARTS = ("accuracy-macs", "accuracy-bytes", "accuracy-time")
"""Names of their pictures; the last is there where times were measured."""


def make_sweep_page(result: SweepResult) -> str:
    """The HTML document."""
    drawn = "" if result.drawn is None else (
        f", each step at a sparsity drawn from {share(result.drawn[0])} to {share(result.drawn[1])}"
    )  # fmt: skip
    return make_document(
        kind="One model, many sparsities", title=f"{result.name}: many sparsities",
        name=result.name,
        about=f"{result.spec}, {result.method} to {result.own.name} sparsity{drawn}, on "
        f"{result.data}",
        headline=_headline(result), sections=_sections(result), generator=GENERATOR,
    )  # fmt: skip


def _headline(result: SweepResult) -> list[tuple[str, str, str]]:
    own, sparsest = result.own, result.rows[-1]
    figures = [("as trained", markup.percent(own.top1, 2), f"top-1 at {own.name}")]
    best = max(result.rows, key=lambda row: (row.top1, row.sparsity))
    if best is not own:
        figures.append(("best", markup.percent(best.top1, 2), f"at {best.name}"))
    if sparsest not in (best, own):
        figures.append(("sparsest", markup.percent(sparsest.top1, 2), f"at {sparsest.name}"))
    if result.picked is not None:
        figures.append(("picked", share(result.picked.sparsity), result.picked.condition))
    return figures


def charts(result: SweepResult) -> tuple[LineChart, ...]:
    """Accuracy against multiplications, bytes and, where it was measured, time."""
    macs, macs_unit = _unit(max(row.macs for row in result.rows))
    size, size_unit = _unit(max(row.bytes for row in result.rows))
    made = [
        _chart(CHARTS[0], "Accuracy against multiplications", _MANY[macs_unit],
               result, [_series("top-1", result.rows, lambda row: row.macs / macs)]),
        _chart(CHARTS[1], "Accuracy against bytes", f"{size_unit}B, compact file",
               result, [_series("top-1", result.rows, lambda row: row.bytes / size)]),
    ]  # fmt: skip
    lines = [_series("fp32", result.rows, lambda row: _ms(row.speed))]
    lines.append(_series(
        "INT8", result.rows, lambda row: _ms(row.int8_speed),
        lambda row: row.int8_top1, hue=1,
    ))  # fmt: skip
    if lines[0].points:
        made.append(_chart(CHARTS[2], "Accuracy against time", "median time of a call, ms",
                           result, [line for line in lines if line.points]))  # fmt: skip
    return tuple(made)


def _ms(speed: Speed | None) -> float | None:
    return None if speed is None else speed.ms


def _series(
    name: str,
    rows: Sequence[SweepRow],
    x: Callable[[SweepRow], float | None],
    y: Callable[[SweepRow], float | None] = lambda row: row.top1,
    **style: Any,
) -> Series:
    found = [(x(row), y(row), row) for row in rows]
    known = sorted(
        (a, 100 * b, row.sparsity) for a, b, row in found if a is not None and b is not None
    )
    return Series(
        name, tuple((a, b) for a, b, _ in known), unit=" %", dots=True,
        labels=tuple(share(sparsity) for *_, sparsity in known), **style,
    )  # fmt: skip


def _chart(key: str, title: str, x: str, result: SweepResult, lines: Sequence[Series]) -> LineChart:
    said = "; ".join(
        f"{line.name} {b:.2f} % at {a:.3g} ({label})"
        for line in lines
        for (a, b), label in zip(line.points, line.labels, strict=True)
    )
    places = [a for line in lines for a, _ in line.points]
    level = 100 * result.own.top1
    goal = Series("as trained", ((min(places), level), (max(places), level)), "goal", " %")
    drawn = (goal, *lines) if min(places) < max(places) else tuple(lines)
    return LineChart(key, title, f"{title}: {said}", Axis(x), Axis("top-1, %"), drawn)


_MANY = {"": "MACs", "k": "thousand MACs", "M": "million MACs", "G": "billion MACs"}


def _unit(most: float) -> tuple[float, str]:
    """What to divide by, and what that is called."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if most >= size:
            return size, name
    return 1.0, ""


def _sections(result: SweepResult) -> tuple[Section, ...]:
    heads, *lines = result.to_table()
    columns = [Column(head, number=index > 0) for index, head in enumerate(heads)]
    rest: list[Block] = [Table(columns, lines), Note(how(result))]
    empty = [
        f"{row.name}: no weight is left in {markup.listed(row.empty)}"
        for row in result.rows
        if row.empty
    ]
    if empty:
        rest.append(Items(empty))
    if result.picked is not None:
        picked = result.picked
        rest.append(Note(
            f"{share(picked.sparsity)} is the sparsest that holds {picked.condition}; it is in "
            f"{picked.folder}: {markup.listed(tuple(picked.files))}."
        ))  # fmt: skip
    lead = (
        "The same latent weights with the threshold of each sparsity, without more training. The "
        f"asterisk marks the sparsity that the model was trained for ({result.own.name}); `drop` "
        "is how many points of accuracy a row is below it."
    )
    again = Section("reproduce", "How to do it again", rest=tuple(_again(result)))
    return (Section("sparsities", "What each is worth", lead, charts(result), (), tuple(rest)),
            again)  # fmt: skip


def how(result: SweepResult) -> str:
    """How it was measured, in sentences."""
    norms = (
        f"Batch norm took its statistics anew from {markup.plural(result.calibration, 'batch')} of "
        "training data at each sparsity."
        if result.calibration == 1
        else f"Batch norm took its statistics anew from {result.calibration:,} batches of training "
        "data at each sparsity."
        if result.calibration
        else "Nothing was calibrated anew."
    )
    times = "" if result.dense is None else (
        " Time is the median of the calls in ONNX Runtime, side by side in rounds, of the faster "
        f"file of each sparsity; dense takes {markup.milliseconds(result.dense.ms)}."
    )  # fmt: skip
    return (
        f"{result.samples:,} test samples. {norms} Left are so many of "
        f"{markup.count(result.weights)} weights and of the {markup.count(result.dense_macs)} "
        f"multiplications of one sample; the size is that of the compact file, of "
        f"{markup.size(result.dense_bytes)} dense.{times}"
    )


def _again(result: SweepResult) -> list[Block]:
    parts: list[Block] = [Code(result.command)] if result.command else []
    for title in ("settings", "environment"):
        values = result.bench.get(title, {})
        if values:
            entries = [(str(key), _text(value)) for key, value in values.items()]
            parts.append(Terms(entries, f"Measured with: {title}"))
    return parts or [Note("Made in Python.")]


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return "not set" if value is None else str(value)


def command(words: Sequence[str]) -> str:
    """As a line for a shell."""
    return shlex.join(["st3fx", "sweep", *words])
