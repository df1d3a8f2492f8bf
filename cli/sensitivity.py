"""``st3fx sensitivity``: what it costs to prune each layer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from st3fx.cli.completion import DATA, FOLDER
from st3fx.cli.contradictions import require_apart
from st3fx.cli.options import (
    METHOD_NAMES,
    Numbers,
    force_option,
    given,
    json_option,
    model_options,
    trust_options,
)
from st3fx.cli.output import show, stdout_for
from st3fx.cli.quantize import DATA_SETTINGS
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import duration, percent

if TYPE_CHECKING:
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
@click.option(
    "--data", type=DATA, metavar="TEXT",
    help="Data to score on, as for st3fx train.  [default: the run's]",
)  # fmt: skip
@click.option("--data-path", type=FOLDER, metavar="TEXT", help="Folder of the data.")
@click.option("-j", "--workers", type=int, metavar="N", help="Processes that load data.")
@click.option("--channels", type=int, metavar="N", help="3 repeats grey images.")
@click.option("--image-size", type=int, metavar="N", help="Side of the images, in pixels.")
@click.option(
    "-x", "--export", "record", metavar="FILE",
    help="Write the result as JSON.  [default: sensitivity.json in a run, else nowhere]",
)  # fmt: skip
@click.option("--html", "page", metavar="FILE", help="Write the result as a page, too.")
@trust_options
@force_option("files that st3fx sensitivity did not write")
@json_option
def sensitivity(
    *,
    sparsities: tuple[float, ...],
    images: str,
    method: str | None,
    granularity: str | None,
    record: str | None,
    page: str | None,
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

    \b
    Examples
      st3fx sensitivity runs/resnet20
      st3fx sensitivity runs/resnet20 --sparsity 0.5,0.7,0.9 --images all
      st3fx sensitivity torchvision:resnet18 --weights r18.pt --data imagefolder --data-path ~/val
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.models import Request
    from st3fx.commands.quantize import subject
    from st3fx.commands.sensitivity import check_files, sensitivity_spec, write_page

    about = ("spec", "weights", "inputs", "seed", "trust", "model")
    request = Request(**{name: asked[name] for name in about})
    found = subject(request, given({name: asked[name] for name in DATA_SETTINGS}))
    made = _method(found, method, granularity)
    path, html = check_files(found, record, page, force=force)
    require_apart({"--export": path, "--html": html}, (request.spec, request.weights))
    count = _count(images)
    with stdout_for(as_json=as_json), Progress() as progress:
        result = sensitivity_spec(found, sparsities, method=made, images=count, progress=progress)
        if path is not None:
            result.write(path)
        if html is not None:
            write_page(result, html)
    show(result, print_sensitivity, as_json=as_json)
    for written in (path, html) if not as_json else ():
        if written is not None:
            console().print(Text(f"wrote {written}"), soft_wrap=True)


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


def print_sensitivity(result: SensitivityResult) -> None:
    """The layers by what they cost, then what was measured."""
    out, levels = console(), result.sparsities
    heads = [f"{100 * level:g} %" for level in levels]
    rows = []
    for layer in result.by_cost[:ROWS]:
        weights, macs = result.saved(layer, layer.weights)
        drops = (f"{-100 * point.top1_drop:+.1f}" for point in layer.points)
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
