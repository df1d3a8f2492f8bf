"""``st3fx demo``: the main job on the data that comes with st3fx."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import click

from st3fx.cli.completion import FOLDER
from st3fx.cli.contradictions import Apart, rules
from st3fx.cli.options import force_option, json_option
from st3fx.cli.output import say, show, stdout_for
from st3fx.cli.terminal import INTERRUPTED
from st3fx.cli.views.demo import DemoView, print_demo

if TYPE_CHECKING:
    from st3fx.commands.demo import DemoResult


@click.command()
@click.option("-o", "--output-dir", type=FOLDER, metavar="DIR", default="st3fx-demo",
              show_default=True, help="Where everything is written.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N",
              help="For weights, shuffling and inputs.  [default: 0, or the demo's]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a demo that was stopped.")
@force_option("a demo that is already there")
@json_option
@rules(Apart("resume", "force", "a demo goes on, or it is replaced"))
def demo(*, output_dir: str, seed: int | None, resume: bool, force: bool, as_json: bool) -> None:
    """Show the whole way on data that comes with st3fx: no configuration, no download.

    A ResNet-20 learns to tell the ten kinds of clothing of Fashion-MNIST apart (a subset), once
    dense and once while 90 % of its weights become zero in blocks of four; both trainings begin
    with the same weights and take the same steps. The sparse one is folded, exported, quantized to
    8-bit integers, counted, timed and reported. All that is printed is measured as it runs. It
    takes about four minutes of processor time, which two idle cores share.

    Ctrl-C saves; --resume goes on.

    \b
    Examples
      st3fx demo
      st3fx demo --seed 1 -o demo-1
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    # Read when torch is imported. Threads of small operators wait for each other all the time, and
    # by spinning they take the cores from one another where something else runs too: ten times as
    # slow as with this, whatever else the machine does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with stdout_for(as_json=as_json):
        result = _run(output_dir, seed, again=resume, force=force)
    show(result, print_demo, as_json=as_json)


def _run(folder: str, seed: int | None, *, again: bool, force: bool) -> DemoResult:
    from st3fx.commands.demo import DemoSettings, run_demo
    from st3fx.training.interrupt import Interrupted

    view = DemoView(sys.stdout)
    try:
        return run_demo(folder, view, DemoSettings(seed=seed), again=again, force=force)
    except (Interrupted, KeyboardInterrupt):
        command = f"st3fx demo --resume -o {shlex.quote(folder)}"
        if seed is not None:  # it may not have begun
            command += f" --seed {seed}"
        say(f"stopped; what is done is kept: go on with {command}", err=True)
        sys.exit(INTERRUPTED)
    finally:
        view.close()
