"""The top of the page, and the sections about the run: training, latency, sizes, commands."""

from __future__ import annotations

import dataclasses
from typing import Any

from st3fx.errors import quoted
from st3fx.report import markup
from st3fx.report.charts import best, label, latency_chart, latency_table, training_charts
from st3fx.report.facts import Facts, TrainingFacts
from st3fx.report.model_sections import no_model
from st3fx.report.section import Block, Code, Column, Items, Note, Section, Table, Terms
from st3fx.training.folder import RunFolder


def headline(facts: Facts) -> list[tuple[str, str, str]]:
    """The figures that matter: name, value, and what stands beside it."""
    figures = [_accuracy(facts), _sparsity(facts), _macs(facts), _bytes(facts), _latency(facts)]
    return [figure for figure in figures if figure is not None]


def about(facts: Facts) -> str:
    """The model and its training, in a sentence."""
    parts = []
    if facts.model is not None:
        method = facts.model.plan.method_text
        target = facts.model.plan.target
        aim = "" if target is None else f" for {markup.percent(target)} sparsity"
        parts.append(f"{facts.model.recipe.spec}, {method}{aim}")
    if facts.training is not None:
        settings = facts.training.settings
        parts.append(f"{settings.data}, {markup.plural(settings.epochs, 'epoch')}")
    return ", on ".join(parts)


def _accuracy(facts: Facts) -> tuple[str, str, str] | None:
    if facts.training is None or not facts.training.tests:
        return None
    last, dense = facts.training.tests[-1], facts.training.dense
    notes = [] if last["top5"] is None else [f"top-5 {markup.percent(last['top5'])}"]
    if dense is not None and dense is not last:
        notes.append(f"dense {markup.percent(dense['top1'])}")
    return "top-1 accuracy", markup.percent(last["top1"]), ", ".join(notes)


def _sparsity(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None:
        return None
    left = markup.count(facts.model.nonzeros)
    note = f"{left} of {markup.count(facts.model.plan.numel)} weights left"
    return "sparsity", markup.percent(facts.model.sparsity), note


def _macs(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None or not facts.model.flops:
        return None
    exact = facts.model.flops["exact"]
    share = exact.sparse_macs / exact.dense_macs if exact.dense_macs else 1.0
    note = f"{markup.percent(share)} of {markup.count(exact.dense_macs)}"
    return "MACs left", markup.count(exact.sparse_macs), note


def _bytes(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None:
        return None
    smallest, dense = min(facts.model.sizes, key=lambda size: size.raw), facts.model.sizes[0]
    return "size", markup.size(smallest.raw), f"{smallest.name}; dense {markup.size(dense.raw)}"


def _latency(facts: Facts) -> tuple[str, str, str] | None:
    found = None if facts.bench is None else best(facts.bench)
    if facts.bench is None or found is None:
        return None
    row, baseline = found
    assert row.ratio is not None
    note = (
        f"{label(row, facts.bench)}: {markup.times(row.ratio.median)} as fast as "
        f"{baseline.name}, {markup.milliseconds(baseline.median_ms)}"
    )
    return "latency", markup.milliseconds(row.median_ms), note


def training(facts: Facts) -> Section:
    """Accuracy, sparsity, loss, threshold."""
    run = facts.training
    if run is None:
        missing = (
            f"{facts.source} is a bundle without a run: `st3fx train {quoted(facts.source)}` "
            "trains it, and `st3fx report` on the run's folder shows how."
        )
        return Section("training", "Training", missing=missing)
    if not run.rows:
        missing = f"The log has no rows yet: `st3fx train --resume {quoted(facts.source)}` goes on."
        return Section("training", "Training", missing=missing)
    return Section("training", "Training", _course(run), tuple(training_charts(run)))


def latency(facts: Facts) -> Section:
    """What a benchmark measured."""
    title, bench = "How fast it is", facts.bench
    if bench is None:
        target = RunFolder(facts.source).bench if facts.is_run else f"{facts.source}.bench.json"
        what = facts.source / "model.st3fx" if facts.is_run else facts.source
        again = "`st3fx report` finds it there" if facts.is_run else (
            f"`st3fx report {quoted(facts.source)} --bench {quoted(target)}` shows it"
        )  # fmt: skip
        command = f"st3fx bench {quoted(what)} -x {quoted(target)}"
        missing = f"Not measured yet: `{command}` does it, and {again}."
        return Section("latency", title, missing=missing)
    rest: tuple[Block, ...] = (
        latency_table(bench), *_environment("Measured on", bench.environment),
        Note("Measured by", bench.command),
    )  # fmt: skip
    verdict = Items(bench.verdict, "verdict")
    return Section("latency", title, "", (latency_chart(bench),), (verdict,), rest)


def sizes(facts: Facts) -> Section:
    """Bytes."""
    title, model = "How large it is", facts.model
    if model is None:
        return Section("sizes", title, missing=no_model(facts))
    columns = [Column(""), Column("bytes", number=True), Column("smaller", number=True),
               Column("compressed", number=True), Column("smaller", number=True)]  # fmt: skip
    dense = model.sizes[0]
    rows = [
        (one.name, markup.size(one.raw), _times(dense.raw, one.raw), markup.size(one.compressed),
         _times(dense.compressed, one.compressed))
        for one in model.sizes
    ]  # fmt: skip
    lead = (
        "Zeros take as much room as other numbers until a format leaves them out, as the compact "
        "file of `st3fx fold --compact` does. Compressed is with zlib at level 6."
    )
    return Section("sizes", title, lead, rest=(Table(columns, rows),))


def reproduce(facts: Facts) -> Section:
    """Commands, settings, versions."""
    parts: list[Block] = [Code("\n".join(facts.commands))]
    if facts.model is not None:
        parts += _environment("Converted with", facts.model.versions)
        parts.append(_details("Method", facts.model.recipe.method))
    if facts.training is not None:
        settings = dataclasses.asdict(facts.training.settings)
        parts.append(_details("All settings of the run", settings))
    return Section("reproduce", "How to do it again", rest=tuple(parts))


def _course(run: TrainingFacts) -> str:
    """The run in a sentence or two."""
    if not run.tests:
        return f"{run.rows[-1]['step']:,} steps so far, and no evaluation yet."
    last, dense = run.tests[-1], run.dense
    said = (
        f"After {last['step']:,} steps in {markup.plural(last['epoch'], 'epoch')} the model gets "
        f"{markup.percent(last['top1'])} of the test data right at "
        f"{markup.percent(last['sparsity'])} sparsity"
    )
    if dense is not None and dense is not last:
        said += f"; while it was dense it got {markup.percent(dense['top1'])}"
    best = next((row for row in reversed(run.tests) if row["best"]), None)
    if best is not None and best["top1"] > last["top1"]:
        said += (
            f". Best at full sparsity: {markup.percent(best['top1'])} after epoch {best['epoch']}"
        )
    if last["epoch"] < run.settings.epochs:
        said += f". {last['epoch']} of {run.settings.epochs} epochs are done"
    return f"{said}."


def _environment(title: str, values: dict[str, object] | object) -> tuple[Note, ...]:
    entries = values.items() if isinstance(values, dict) else ()
    said = ", ".join(f"{key} {_value(value)}" for key, value in entries)
    return (Note(f"{title} {said}."),) if said else ()


def _details(title: str, values: dict[str, Any]) -> Terms:
    return Terms([(key, _value(value)) for key, value in values.items()], title)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None or value == "":
        return "not set"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _times(before: int, after: int) -> str:
    return markup.times(before / after) if after else "–"
