"""``st3fx analyze``: what a model costs, counted exactly."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from st3fx.cli.contradictions import require_apart
from st3fx.cli.options import force_option, json_option, model_options, trust_options
from st3fx.cli.output import say
from st3fx.cli.views.flops import print_report
from st3fx.cli.views.progress import Progress

if TYPE_CHECKING:
    from st3fx.flops.flops_report import FlopsReport, LayerFlops

CONVENTIONS = ("exact", "st3", "str")
"""Those of ``st3fx.flops.flops_report.Convention`` (seconds to import); a test holds them equal."""


@click.command()
@model_options
@click.option(
    "--sparsity", type=float, metavar="S",
    help="Prune now, without training, to this share of zeros among the sites' weights.",
)  # fmt: skip
@click.option(
    "--convention", type=click.Choice(CONVENTIONS), default="exact", show_default=True,
    help="What counts as a MAC: exact leaves padding out; st3 counts convolutions and products "
    "with weights, padding included; str adds average pooling.",
)  # fmt: skip
@click.option(
    "--batch", type=click.IntRange(1), metavar="N",
    help="Samples in the call.  [default: as in the example; 1 where a graph leaves it free]",
)  # fmt: skip
@click.option(
    "--blocks", type=click.IntRange(2), metavar="N",
    help="Count blocks of N consecutive inputs, too: those left, and the zeros in these.  "
    "[default: as the bundle is pruned]",
)  # fmt: skip
@click.option(
    "--sort", type=click.Choice(("order", "macs", "name", "sparsity")), default="order",
    show_default=True, help="Of the layers: as they run, or the largest first.",
)  # fmt: skip
@click.option("--layers/--no-layers", default=True, help="Each layer, or the totals alone.")
@click.option("--csv", "table", metavar="FILE", help="Write the layers as CSV; - prints them.")
@trust_options
@force_option("a CSV file that is already there")
@json_option
def analyze(
    *,
    convention: Any,
    batch: int | None,
    blocks: int | None,
    sort: str,
    layers: bool,
    table: str | None,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Count the multiplications of SPEC in one call, dense and with the zeros left out.

    SPEC is a bundle, before or after training, a model as for st3fx convert, or an ONNX file
    (model.onnx). Of an ONNX file the graph is read; anything else runs once, without values. Give
    folded weights by --weights.

    Each layer has its shape, zeros, MACs and dead channels: outputs whose filter is all zero, and
    inputs that no filter reads. A quantised weight is zero at its zero point, and a weight that is
    computed from constants where its values are. Operators that no rule knows, and loops and
    branches that depend on values, are named, and are in no total.

    --blocks 4 says whether a file is block sparse: kernels for INT8 multiply four consecutive
    inputs at once, and gain only where all four are zero. "fullest" is the largest number of
    nonzeros in a block: 2 where 2 of 4 are left.

    \b
    Examples
      st3fx analyze runs/resnet20/model.st3fx
      st3fx analyze torchvision:resnet50 --input 1x3x224x224 --convention st3 --no-layers
      st3fx analyze torchvision:resnet50 --input 1x3x224x224 --weights folded.safetensors
      st3fx analyze model.onnx --blocks 4
      st3fx analyze model.onnx --batch 8 --sort macs --csv layers.csv
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.analyze import analyze as count
    from st3fx.commands.models import Request
    from st3fx.errors import FlopsError
    from st3fx.files.atomic import check_file

    if as_json and table == "-":
        raise click.UsageError("--json and --csv - would both print to stdout")
    target = None
    if table not in (None, "-"):
        target = check_file(str(table), force=force, error=FlopsError, in_folder=True)
        require_apart({"--csv": target}, (asked["spec"], asked["weights"]))
    # A model's own file may print: that must not mix with the result.
    quiet = contextlib.redirect_stdout(sys.stderr)
    with quiet, Progress() as report:
        request = Request(**asked, allow_dense=True)
        result = count(request, convention, batch=batch, blocks=blocks, progress=report)
    rows = ordered(result, sort)
    if target is not None:
        _write(result, rows, target)
    if as_json:
        data = result.to_dict()
        names = [row.name for row in rows] if layers else []
        by_name = {row["name"]: row for row in data["by_layer"]}
        say(json.dumps({**data, "by_layer": [by_name[name] for name in names]}, indent=1))
    elif table == "-":
        say(_csv(result, rows), end="")
    else:
        print_report(result, rows if layers else ())


def ordered(report: FlopsReport, sort: str) -> list[LayerFlops]:
    """The layers as they run, by name, or the largest first."""
    rows = list(report.by_layer.values())
    if sort == "macs":
        rows.sort(key=lambda row: (-row.sparse_macs, row.name))
    elif sort == "sparsity":
        rows.sort(key=lambda row: (-row.sparsity, row.name))
    elif sort == "name":
        rows.sort(key=lambda row: row.name)
    return rows


def _csv(report: FlopsReport, rows: list[LayerFlops]) -> str:
    from st3fx.flops.flops_report import to_csv

    return to_csv(rows, report.sparse_macs)


def _write(report: FlopsReport, rows: list[LayerFlops], path: Path) -> None:
    from st3fx.errors import FlopsError
    from st3fx.files.atomic import replace_file

    content = _csv(report, rows).encode()
    try:
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise FlopsError(f"cannot write {path}: {error.strerror or error}") from error
