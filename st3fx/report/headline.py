"""The top of the page: the model in a sentence, and the handful of figures that matter."""

from __future__ import annotations

from st3fx.report import text
from st3fx.report.facts import Facts
from st3fx.report.latency import best, label
from st3fx.report.markup import EMPTY, Markup, tag


def headline(facts: Facts) -> Markup:
    """Title, sentence and figures."""
    figures = [_accuracy(facts), _sparsity(facts), _macs(facts), _bytes(facts), _latency(facts)]
    shown = [_figure(*figure) for figure in figures if figure is not None]
    return tag(
        "header",
        tag("p", "Sparse training report", class_="kind"),
        tag("h1", facts.name),
        tag("p", _about(facts), class_="lead"),
        tag("ul", *shown, class_="figures") if shown else EMPTY,
    )


def _figure(name: str, value: str, note: str) -> Markup:
    return tag("li", tag("span", name, class_="what"), tag("strong", value),
               tag("span", note, class_="beside"))  # fmt: skip


def _about(facts: Facts) -> str:
    parts = []
    if facts.model is not None:
        method = facts.model.plan.method
        target = facts.model.plan.target
        aim = "" if target is None else f" for {text.percent(target)} sparsity"
        parts.append(f"{facts.model.recipe.spec}, {method}{aim}")
    if facts.training is not None:
        settings = facts.training.settings
        parts.append(f"{settings.data}, {text.plural(settings.epochs, 'epoch')}")
    return ", on ".join(parts)


def _accuracy(facts: Facts) -> tuple[str, str, str] | None:
    if facts.training is None or not facts.training.tests:
        return None
    last, dense = facts.training.tests[-1], facts.training.dense
    notes = [] if last["top5"] is None else [f"top-5 {text.percent(last['top5'])}"]
    if dense is not None and dense is not last:
        notes.append(f"dense {text.percent(dense['top1'])}")
    return "top-1 accuracy", text.percent(last["top1"]), ", ".join(notes)


def _sparsity(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None:
        return None
    left = text.count(facts.model.nonzeros)
    note = f"{left} of {text.count(facts.model.plan.numel)} weights left"
    return "sparsity", text.percent(facts.model.sparsity), note


def _macs(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None or not facts.model.flops:
        return None
    exact = facts.model.flops["exact"]
    share = exact.sparse_macs / exact.dense_macs if exact.dense_macs else 1.0
    note = f"{text.percent(share)} of {text.count(exact.dense_macs)}"
    return "MACs left", text.count(exact.sparse_macs), note


def _bytes(facts: Facts) -> tuple[str, str, str] | None:
    if facts.model is None:
        return None
    smallest, dense = min(facts.model.sizes, key=lambda size: size.raw), facts.model.sizes[0]
    return "size", text.size(smallest.raw), f"{smallest.name}; dense {text.size(dense.raw)}"


def _latency(facts: Facts) -> tuple[str, str, str] | None:
    found = None if facts.bench is None else best(facts.bench)
    if facts.bench is None or found is None:
        return None
    row, baseline = found
    assert row.ratio is not None
    note = (
        f"{label(row, facts.bench)}: {text.times(row.ratio.median)} as fast as "
        f"{baseline.name}, {text.milliseconds(baseline.median_ms)}"
    )
    return "latency", text.milliseconds(row.median_ms), note
