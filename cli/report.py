"""``st3fx report``: a run as a page that can be passed on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.text import Text

from st3fx.cli.completion import FOLDER
from st3fx.cli.contradictions import require_apart
from st3fx.cli.options import force_option, json_option, trust_options
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_grid
from st3fx.cli.views.words import size_text

if TYPE_CHECKING:
    from st3fx.report.facts import ReportResult


@click.command()
@click.argument("run", metavar="RUN", type=FOLDER)
@click.option(
    "-o", "--output", metavar="FILE",
    help="The page.  [default: report.html in the run; NAME.report.html beside a bundle]",
)  # fmt: skip
@click.option(
    "--bench", metavar="FILE",
    help="What st3fx bench -x wrote.  [default: bench.json in the run, if it is there]",
)  # fmt: skip
@click.option("--png", "pictures", metavar="DIR", help="Write the charts as PNG files too.")
@trust_options
@force_option("files that no report wrote")
@json_option
def report(
    *,
    run: str,
    output: str | None,
    bench: str | None,
    pictures: str | None,
    trust: bool,
    model: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a run as one HTML file with charts and tables, to read anywhere and to pass on.

    RUN is the folder of st3fx train, while it is under way too, or a bundle. The page needs no
    network and no other file. It shows accuracy, sparsity and loss over training, zeros and
    multiplications of each layer, the weights around the threshold, every site, the dataflow,
    latency, sizes, and how to do it again. What is not known yet has a line that says how to get
    it.

    \b
    Examples
      st3fx report runs/resnet20
      st3fx report runs/resnet20 --png pictures
      st3fx report resnet50.st3fx --bench out.json -o resnet50.html
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.report import write_report

    require_apart({"--output": output, "--png": pictures}, (run, bench))
    with stdout_for(as_json=as_json), Progress() as progress:
        result = write_report(
            run, output, bench=bench, pictures=pictures, force=force, trust=trust, model=model,
            progress=progress,
        )  # fmt: skip
    show(result, print_result, as_json=as_json)


def print_result(result: ReportResult) -> None:
    """Sections with what is missing, then the files."""
    out = console()
    out.print(make_grid((name, missing or "filled") for name, missing in result.sections.items()))
    if result.pictures:
        folder = result.pictures[0].parent
        out.print(Text(f"wrote {len(result.pictures)} pictures into {folder}"), soft_wrap=True)
    out.print(Text(f"wrote {result.path} ({size_text(result.size)})"), soft_wrap=True)
