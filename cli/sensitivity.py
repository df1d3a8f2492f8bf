"""``st3fx sensitivity``: what it costs to prune each layer alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from st3fx.cli.contradictions import Apart, Needs, require_apart, rules
from st3fx.cli.options import (
    DATA_SETTINGS,
    METHOD_NAMES,
    Numbers,
    data_options,
    force_option,
    given,
    json_option,
    model_options,
    trust_options,
)
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import duration, percent

if TYPE_CHECKING:
    from st3fx.commands.budgets import BudgetResult, Unit
    from st3fx.commands.quantize import Subject
    from st3fx.methods.base import Method
    from st3fx.training.sensitivity import SensitivityResult

ROWS = 30
"""Layers that are listed, those that cost most; --json has all."""


@click.command()
@model_options
@click.option(
    "--sparsity", "sparsities", type=Numbers(), metavar="A,B", default="0.5,0.8,0.9,0.95",
    show_default=True, help="Which sparsities each layer is tried at.",
)  # fmt: skip
@click.option(
    "--images", metavar="N", default="1024", show_default=True,
    help="Test samples to score on, taken evenly from all; 'all' for all of them.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(METHOD_NAMES),
    help="How a SPEC is pruned; a bundle has its own method.  [default: st3]",
)  # fmt: skip
@click.option(
    "--granularity", metavar="WHAT",
    help="What is pruned together in a SPEC: unstructured, block:4, nm:2:4, channels.  "
    "[default: unstructured]",
)  # fmt: skip
@data_options
@click.option(
    "-x", "--export", "record", metavar="FILE",
    help="Write the result as JSON.  [default: sensitivity.json in a run, else nowhere]",
)  # fmt: skip
@click.option(
    "--budget", type=float, metavar="S",
    help="Also find the targets of the layers that raise the loss least at this sparsity over all "
    "weights.",
)  # fmt: skip
@click.option(
    "--budget-macs", type=float, metavar="S", help="The same over multiplications.",
)  # fmt: skip
@click.option(
    "--budget-ms", type=float, metavar="MS",
    help="The lowest sparsity at which one sample takes no longer on one thread with sparse "
    "kernels, as the cost model expects on this machine.",
)  # fmt: skip
@click.option(
    "--global", "together", is_flag=True,
    help="With --budget-ms, one threshold for all layers: nothing is measured but time.",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE",
    help="Write the targets for st3fx train --config, and --sparsity-of of convert and train.  "
    "[default: budgets.toml]",
)  # fmt: skip
@click.option(
    "--reuse", is_flag=True, help="Take the result that --export names, which is there already.",
)  # fmt: skip
@click.option("--html", "page", metavar="FILE", help="Write the result as a page, too.")
@trust_options
@force_option("files that st3fx sensitivity did not write")
@json_option
@rules(
    Apart("budget", "budget_macs", "give one budget"),
    Apart("budget", "budget_ms", "give one budget"),
    Apart("budget_macs", "budget_ms", "give one budget"),
    Needs("together", "budget_ms"),
    Apart("together", "reuse", "nothing is measured but time"),
    Apart("together", "page", "nothing is measured but time"),
    Apart("together", "record", "nothing is measured but time"),
)
def sensitivity(
    *,
    sparsities: tuple[float, ...],
    images: str,
    method: str | None,
    granularity: str | None,
    record: str | None,
    page: str | None,
    budget: float | None,
    budget_macs: float | None,
    budget_ms: float | None,
    together: bool,
    output: str | None,
    reuse: bool,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Prune each layer of SPEC alone, and say what that costs.

    SPEC is the folder of a training, its bundle, or a model with --weights and --data. All sites
    stay as they are but one, which gets each sparsity in turn, by the method and the granularity of
    the run; the model is scored on the same test samples each time. The layers are listed by their
    cost, the mean rise of the loss. In a run the result becomes a section of st3fx report.

    A model that was trained without sparsity says most: in a sparse one, a layer that gets fewer
    zeros than it has gives back weights that training had pruned.

    With a budget the targets of the layers are found that raise the loss least, if what each costs
    alone adds up, and written for st3fx convert and st3fx train.

    \b
    Examples
      st3fx sensitivity runs/resnet20
      st3fx sensitivity runs/resnet20 --sparsity 0.5,0.7,0.9 --images all
      st3fx sensitivity runs/resnet20 --reuse --budget 0.9
      st3fx sensitivity torchvision:resnet18 -i 1x3x224x224 --budget-ms 9 --global
      st3fx sensitivity torchvision:resnet18 --weights r18.pt --data imagefolder --data-path ~/val
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.budgets import check_output
    from st3fx.commands.models import Request
    from st3fx.commands.quantize import subject
    from st3fx.commands.sensitivity import check_files

    about = ("spec", "weights", "inputs", "seed", "trust", "model")
    request = Request(**{name: asked[name] for name in about})
    found = subject(request, given({name: asked[name] for name in DATA_SETTINGS}))
    made = _method(found, method, granularity)
    # What is only read is no place to write to.
    path, html = check_files(found, record, page, force=force, reuse=reuse)
    ask = Ask.of(budget, budget_macs, budget_ms, together=together)
    if output is not None and ask is None:
        raise click.UsageError("--output is for a budget: give --budget, --budget-macs or -ms too")
    target = None if ask is None else check_output(Path(output or "budgets.toml"), force=force)
    require_apart(
        {"--export": path, "--html": html, "--output": target}, (request.spec, request.weights)
    )
    count = _count(images)
    work = Work(found, made, sparsities, count, path, html, target, reuse=reuse)
    with stdout_for(as_json=as_json), Progress() as progress:
        result = _worked(work, ask, progress)
    show(result, print_results, as_json=as_json)


@dataclass(frozen=True)
class Ask:
    """A budget.

    Attributes:
        unit: ``weights``, ``macs`` or ``ms``.
        amount: Of these.
        together: Whether all layers share one threshold.
    """

    unit: Unit
    amount: float
    together: bool

    @classmethod
    def of(
        cls, weights: float | None, macs: float | None, ms: float | None, *, together: bool
    ) -> Ask | None:
        """What was asked for, if anything was.

        Raises:
            UsageError: For a time that is none.
        """
        if ms is not None:
            if not 0 < ms < float("inf"):
                raise click.UsageError(f"--budget-ms {ms:g}: give milliseconds, more than 0")
            return cls("ms", ms, together)
        if macs is not None:
            return cls("macs", macs, together=False)
        return None if weights is None else cls("weights", weights, together=False)


@dataclass(frozen=True)
class Work:
    """What is done, and where it is written."""

    found: Subject
    method: Method | None
    sparsities: tuple[float, ...]
    images: int | None
    path: Path | None
    html: Path | None
    target: Path | None
    reuse: bool


@dataclass(frozen=True)
class Results:
    """What was measured, what meets the budget, and where both were written."""

    sensitivity: SensitivityResult | None
    budget: BudgetResult | None
    files: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: those of the sensitivity, and the budget beside them."""
        plain = {} if self.sensitivity is None else self.sensitivity.to_dict()
        return plain if self.budget is None else plain | {"budget": self.budget.to_dict()}


def _worked(work: Work, ask: Ask | None, progress: Progress) -> Results:
    from st3fx.commands.budgets import for_share, for_time, for_time_together, times_of
    from st3fx.commands.sensitivity import load, sensitivity_spec, write_page
    from st3fx.training.sensitivity import read_sensitivity

    result, files = None, [work.html, work.target]
    if ask is None or not ask.together:
        if work.reuse:
            if work.path is None:
                raise click.UsageError("--reuse: name the file that is there by --export")
            result = read_sensitivity(work.path)
        else:
            result = sensitivity_spec(
                work.found, work.sparsities, method=work.method, images=work.images,
                progress=progress,
            )  # fmt: skip
            files.insert(0, work.path)
            if work.path is not None:
                result.write(work.path)
        if work.html is not None:
            write_page(result, work.html)
    met = None
    if ask is not None and ask.unit == "ms":
        loaded = load(work.found, work.method, progress)
        times = times_of(loaded.model, loaded.example, progress)
        met = (
            for_time_together(loaded.model, times, ask.amount)
            if result is None
            else for_time(result, times, ask.amount)
        )
    elif ask is not None and result is not None:
        met = for_share(result, ask.amount, ask.unit)
    if met is not None and work.target is not None:
        met.write(work.target)
    return Results(result, met, tuple(file for file in files if file is not None))


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise click.UsageError(f"--images {text}: give a number, 1 or more, or all")
    return int(text)


def _method(found: Subject, name: str | None, granularity: str | None) -> Method | None:
    from st3fx import methods

    if found.request.is_bundle:
        for flag, value in (("--method", name), ("--granularity", granularity)):
            if value is not None:
                raise click.UsageError(
                    f"{flag}: {found.request.spec} is a bundle, which has its own; leave it out"
                )
        return None
    return methods.create(name or "st3", granularity=granularity or "unstructured")


def print_results(results: Results) -> None:
    """What was measured, what meets the budget, and the files."""
    if results.sensitivity is not None:
        print_sensitivity(results.sensitivity)
    if results.budget is not None:
        print_budget(results.budget)
    for file in results.files:
        console().print(Text(f"wrote {file}"), soft_wrap=True)


def print_budget(result: BudgetResult) -> None:
    """What meets the budget, in a line or two."""
    lines = []
    if result.ms is not None and result.dense_ms is not None:
        lines.append(
            f"{result.budget:g} ms for one sample on one thread: {percent(result.sparsity)} "
            f"sparsity, {result.ms:.3g} ms expected; the dense model takes {result.dense_ms:.3g} "
            f"ms here ({result.cpu}; constants of the cost model: {result.constants})"
        )
    if result.budgets is not None:
        lines.append(
            f"targets of {len(result.budgets.targets)} layers from "
            f"{percent(min(result.budgets.targets.values()))} to "
            f"{percent(max(result.budgets.targets.values()))}: {percent(result.budgets.sparsity)} "
            f"of the weights and {percent(result.budgets.macs)} of the multiplications go; the "
            f"loss rises by {result.budgets.rise:.3g} if rises add up, by "
            f"{result.budgets.uniform:.3g} with one target for all"
        )
    for line in lines:
        console().print(Text(line), soft_wrap=True)


def _points(change: float) -> str:
    """With its sign, which nothing has not."""
    return "0.0" if abs(change) < 0.05 else f"{change:+.1f}"


def print_sensitivity(result: SensitivityResult) -> None:
    """The layers by what they cost, then what was measured."""
    out, levels = console(), result.sparsities
    heads = [f"{100 * level:g} %" for level in levels]
    rows = []
    for layer in result.by_cost[:ROWS]:
        weights, macs = result.saved(layer, layer.weights)
        drops = (_points(-100 * point.top1_drop) for point in layer.points)
        rows.append((
            layer.name.removesuffix(".weight"), percent(weights), percent(macs),
            f"{layer.rise:+.4f}", *drops,
        ))  # fmt: skip
    numbers = ("weights", "MACs", "loss", *heads)
    title = "points of accuracy with one layer at"
    table = make_table(("layer", *numbers), rows, numbers=numbers, whole=numbers, title=title)
    out.print(table)
    if len(result.layers) > ROWS:
        more = f"... and {len(result.layers) - ROWS} more (--json has all)"
        out.print(Text(more), soft_wrap=True)
    data = f" of {result.data}" if result.data else ""
    out.print(Text(
        f"{result.model}, {percent(result.sparsity)} sparse before: loss {result.loss:.4f}, top-1 "
        f"{percent(result.top1)} on {result.samples:,} test samples{data}; pruned by "
        f"{result.method}, in {duration(result.seconds)}. loss is the mean rise over the "
        "sparsities; weights and MACs are shares of all sites, what pruning the layer can save"
    ), soft_wrap=True)  # fmt: skip
