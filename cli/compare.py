"""``st3fx compare``: runs beside each other, on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.text import Text

from st3fx.cli.completion import FOLDER
from st3fx.cli.contradictions import require_apart
from st3fx.cli.options import force_option, json_option, trust_options
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import percent, size_text

if TYPE_CHECKING:
    from st3fx.report.comparison import CompareResult, Comparison, Over

LAYERS = 8
"""Layers that are listed, those whose sparsity differs most; --json has all."""


@click.command()
@click.argument("runs", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "-o", "--output", metavar="FILE", default="compare.html", show_default=True, help="The page."
)
@click.option(
    "--over", type=click.Choice(["epoch", "step"]), default="epoch", show_default=True,
    help="What the curves are drawn over.",
)  # fmt: skip
@click.option("--png", "pictures", metavar="DIR", help="Write the charts as PNG files too.")
@trust_options
@force_option("files that no comparison wrote")
@json_option
def compare(
    *,
    runs: tuple[str, ...],
    output: str,
    over: Over,
    pictures: str | None,
    trust: bool,
    model: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Lay runs beside each other, on one HTML page and as tables.

    Each RUN is the folder of st3fx train, while it is under way too, or a bundle. The page needs no
    network and no other file: what came of each run, curves of the trainings over each other, the
    settings that differ, zeros and multiplications of the layers that runs have in common, and
    latency where a run holds a benchmark. A run that is damaged or not finished is shown as far as
    it can be read, and a line says what is missing.

    \b
    Examples
      st3fx compare runs/st3 runs/gmp
      st3fx compare runs/* --over step -o sparsities.html
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.compare import compare as write

    require_apart({"--output": output, "--png": pictures}, runs)
    with stdout_for(as_json=as_json), Progress() as progress:
        result = write(
            runs, output, over=over, pictures=pictures, force=force, trust=trust, model=model,
            progress=progress,
        )  # fmt: skip
    show(result, print_result, as_json=as_json)


def print_result(result: CompareResult) -> None:
    """What came of each run, what differs, what is missing, and the files."""
    from st3fx.report.comparison_sections import remarks

    out, found = console(), result.comparison
    _print_outcomes(found)
    _print_settings(found)
    _print_layers(found)
    lines = [f"{row.run}: {note}" for row in found.outcomes for note in row.notes]
    lines += [f"{path} is left out: {reason}" for path, reason in found.left_out.items()]
    for line in (*lines, *remarks(found)):
        out.print(Text(line), soft_wrap=True)
    if result.pictures:
        folder = result.pictures[0].parent
        out.print(Text(f"wrote {len(result.pictures)} pictures into {folder}"), soft_wrap=True)
    out.print(Text(f"wrote {result.path} ({size_text(result.size)})"), soft_wrap=True)


def _print_outcomes(found: Comparison) -> None:
    rows = found.outcomes
    cells = {
        "model": [row.model for row in rows],
        "method": [row.method or "" for row in rows],
        "sparsity": [_share(row.sparsity) for row in rows],
        "top-1": [_share(row.top1) for row in rows],
        "dense": [_share(row.dense) for row in rows],
        "MACs left": [_share(row.macs_left) for row in rows],
        "size": ["" if row.bytes is None else size_text(row.bytes) for row in rows],
        "ms": ["" if row.latency is None else f"{row.latency.ms:#.3g}" for row in rows],
    }
    if len(set(cells["model"])) == 1:
        del cells["model"]
    shown = {head: texts for head, texts in cells.items() if any(texts)}
    numbers = [head for head in shown if head not in ("model", "method")]
    lines = [(row.run, *texts) for row, *texts in zip(rows, *shown.values(), strict=True)]
    console().print(make_table(("run", *shown), lines, numbers=numbers, whole=numbers))


def _print_settings(found: Comparison) -> None:
    from st3fx.report.comparison_sections import setting_text

    differ, runs = found.differences, [run.label for run in found.runs]
    rows = [
        (name, *(setting_text(values[run]) if run in values else "" for run in runs))
        for name, values in differ.items()
    ]
    if rows:
        console().print(make_table(("setting", *runs), rows, title="what differs"))


def _print_layers(found: Comparison) -> None:
    runs = [run.label for run in found.runs if run.facts.model is not None]
    rows = [row for row in found.layers if row.spread > 0]
    chosen = sorted(rows, key=lambda row: -row.spread)[:LAYERS]
    if not chosen:
        return
    lines = [
        (row.name.removesuffix(".weight"),
         *(percent(row.runs[run].sparsity) if run in row.runs else "" for run in runs))
        for row in rows if row in chosen
    ]  # fmt: skip
    title = "sparsity by layer"
    if len(chosen) < len(found.layers):
        title += f", where it differs most: {len(chosen)} of {len(found.layers)} (--json has all)"
    console().print(make_table(("layer", *runs), lines, numbers=runs, title=title))


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)
