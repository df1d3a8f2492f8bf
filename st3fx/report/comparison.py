"""Runs beside each other as plain data: what came of each, and where they differ.

Nothing is compared that does not belong together: a layer is the same in two runs where name and
shape are, and times are measured by one kind of processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from st3fx import methods
from st3fx.bench.bench_result import BenchRow
from st3fx.report.charts import best
from st3fx.report.facts import Facts, Layer
from st3fx.training.method import DEFAULT
from st3fx.training.settings import FREE

Over = Literal["epoch", "step"]
"""What the curves are drawn over."""


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        label: As much of its path as tells it from the others.
        facts: What is known about it.
        notes: What is damaged, missing or not finished, one sentence each.
    """

    label: str
    facts: Facts
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """The fastest variant that a benchmark measured, beside its baseline.

    Attributes:
        variant: Its name.
        ms: Median time of one call.
        ratio: How many times as fast as the baseline.
        batch: Samples in one call.
        threads: That one call may use.
        cpu: What it was measured on; empty where the file does not say.
    """

    variant: str
    ms: float
    ratio: float
    batch: int
    threads: int
    cpu: str


@dataclass(frozen=True)
class Outcome:
    """What came of a run; ``None`` is not known (yet).

    Attributes:
        run: Its label.
        path: Its folder.
        model: SPEC of the model.
        method: Of the sparsification.
        data: It was trained on.
        target: Sparsity that was asked for.
        epochs: Passes over the data so far.
        of_epochs: Passes that were asked for.
        sparsity: Share of zeros in the sites.
        top1: Test accuracy at the end.
        loss: Test loss at the end.
        best: Best test accuracy at the full sparsity.
        dense: Test accuracy after the last epoch without sparsity.
        macs: Multiplications left in one call with one sample, padding with zeros not counted.
        dense_macs: Those of the model without zeros.
        bytes: Of the smallest form of the weights.
        dense_bytes: Of the dense weights.
        latency: As measured, where there is a benchmark.
        notes: What is damaged, missing or not finished.
    """

    run: str
    path: str
    model: str
    method: str | None
    data: str | None
    target: float | None
    epochs: float | None
    of_epochs: int | None
    sparsity: float | None
    top1: float | None
    loss: float | None
    best: float | None
    dense: float | None
    macs: int | None
    dense_macs: int | None
    bytes: int | None
    dense_bytes: int | None
    latency: Latency | None
    notes: tuple[str, ...]

    @property
    def macs_left(self) -> float | None:
        """Share of the multiplications that are left."""
        return None if not self.dense_macs or self.macs is None else self.macs / self.dense_macs


@dataclass(frozen=True)
class LayerRow:
    """A layer in the runs that have it.

    Attributes:
        name: Full name of its weight.
        shape: Of its weight.
        runs: Label -> what became of it there.
    """

    name: str
    shape: tuple[int, ...]
    runs: Mapping[str, Layer]

    @property
    def spread(self) -> float:
        """Largest difference of two runs' sparsities."""
        shares = [layer.sparsity for layer in self.runs.values()]
        return max(shares) - min(shares)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "runs": {
                label: {
                    "weights": layer.site.numel,
                    "nonzeros": layer.nonzeros,
                    "sparsity": layer.sparsity,
                    "macs": None if layer.flops is None else layer.flops.sparse_macs,
                    "dense_macs": None if layer.flops is None else layer.flops.dense_macs,
                }
                for label, layer in self.runs.items()
            },
        }


@dataclass(frozen=True)
class Comparison:
    """Runs, and what could not be read.

    Attributes:
        runs: In the order in which they were given.
        left_out: Path -> why it is not compared.
        over: What the curves are drawn over.
    """

    runs: tuple[Compared, ...]
    left_out: Mapping[str, str]
    over: Over = "epoch"

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What came of each."""
        return tuple(map(_outcome, self.runs))

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Setting -> label -> value, of the settings that are not the same in all runs.

        Settings that may change while a run goes on, such as its folder, are left out.
        """
        known = {run.label: dict(_settings(run.facts)) for run in self.runs}
        names = dict.fromkeys(name for values in known.values() for name in values)
        found = {}
        for name in names:
            values = {label: of[name] for label, of in known.items() if name in of}
            if len({repr(value) for value in values.values()}) > 1:
                found[name] = values
        return found

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """Layers that two runs or more have, by name and shape, in the order of execution."""
        rows: dict[tuple[str, tuple[int, ...]], dict[str, Layer]] = {}
        for run in self.runs:
            for layer in run.facts.model.layers if run.facts.model else ():
                rows.setdefault((layer.site.name, layer.site.shape), {})[run.label] = layer
        return tuple(
            LayerRow(name, shape, runs) for (name, shape), runs in rows.items() if len(runs) > 1
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "runs": [
                {**dataclasses.asdict(one), "notes": list(one.notes)} for one in self.outcomes
            ],
            "differences": self.differences,
            "layers": [row.to_dict() for row in self.layers],
            "left_out": dict(self.left_out),
        }


@dataclass(frozen=True)
class CompareResult:
    """A comparison that was written.

    Attributes:
        path: The page.
        size: Bytes of it.
        comparison: What it shows.
        pictures: PNG files.
    """

    path: Path
    size: int
    comparison: Comparison
    pictures: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "pictures": [str(path) for path in self.pictures],
            **self.comparison.to_dict(),
        }


def labels(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as no other ends in.

    Args:
        paths: Absolute, none of them twice.
    """
    found = []
    for path in paths:
        others = [other for other in paths if other != path]
        parts = path.parts
        length = 1
        while length < len(parts) and any(o.parts[-length:] == parts[-length:] for o in others):
            length += 1
        found.append("/".join(parts[-length:]).replace("//", "/"))
    return found


def _outcome(run: Compared) -> Outcome:
    facts = run.facts
    tests = facts.training.tests if facts.training else []
    rows = facts.training.rows if facts.training else ()
    last = tests[-1] if tests else None
    dense = facts.training.dense if facts.training else None
    settings = facts.training.settings if facts.training else None
    plan = facts.model.plan if facts.model else None
    exact = facts.model.flops.get("exact") if facts.model else None
    sizes = facts.model.sizes if facts.model else ()
    at_target = [row["top1"] for row in tests if row["at_target"]]
    known = [row["sparsity"] for row in rows if "sparsity" in row]
    return Outcome(
        run=run.label,
        path=str(facts.source),
        model=facts.model.recipe.spec if facts.model else settings.spec if settings else "",
        method=facts.model.plan.method_text
        if facts.model
        else settings.method
        if settings
        else None,
        data=settings.data if settings else None,
        target=plan.target if plan else settings.sparsity if settings else None,
        epochs=rows[-1]["epoch"] if rows and "epoch" in rows[-1] else None,
        of_epochs=settings.epochs if settings else None,
        sparsity=facts.model.sparsity if facts.model else known[-1] if known else None,
        top1=last["top1"] if last else None,
        loss=last["loss"] if last else None,
        best=max(at_target, default=None),
        dense=dense["top1"] if dense else None,
        macs=exact.sparse_macs if exact else None,
        dense_macs=exact.dense_macs if exact else None,
        bytes=min((size.raw for size in sizes), default=None),
        dense_bytes=sizes[0].raw if sizes else None,
        latency=_latency(facts),
        notes=run.notes,
    )


def _latency(facts: Facts) -> Latency | None:
    found = None if facts.bench is None else best(facts.bench)
    if facts.bench is None or found is None:
        return None
    row: BenchRow = found[0]
    assert row.ratio is not None
    cpu = str(facts.bench.environment.get("cpu", ""))
    return Latency(row.name, row.median_ms, row.ratio.median, row.batch, row.threads, cpu)


def _settings(facts: Facts) -> Iterator[tuple[str, Any]]:
    """All that decided about a run, by name."""
    if facts.training is not None:
        for name, value in facts.training.settings.to_dict().items():
            known = name in _METHOD and facts.model is not None
            if name not in FREE and name not in _NO_CAUSE and not known:
                yield name, _DEFAULTS.get(name) if value is None else value
    if facts.model is None:
        return
    recipe = facts.model.recipe
    if facts.training is None:
        yield "spec", recipe.spec
        yield "sparsity", recipe.method.get("sparsity")
    method = methods.from_dict(recipe.method)
    yield "method", methods.key_of(method)
    yield "granularity", method.granularity.text
    settings = methods.to_dict(method)
    own = settings.pop("sparsity_of", {})
    yield "sparsity_of", tuple(f"{glob}={target:g}" for glob, target in own.items())
    for name, value in _flat(settings):
        if name not in ("name", "granularity", "sparsity"):
            yield f"method: {name}", value
    for name, value in facts.model.versions.items():
        yield f"version of {name}", value


_METHOD = ("method", "granularity", "method_options", "ramp", "sparsity_of")
"""Settings that a bundle has in full."""

_DEFAULTS = {"method": DEFAULT, "granularity": "unstructured"}
"""What a training takes where nothing is said."""

_NO_CAUSE = ("recipe", "log_interval")
"""Settings that change nothing by themselves."""


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
