"""``st3fx sweep``: one trained model at many sparsities."""

from __future__ import annotations

from typing import Any

import click

from st3fx.cli.completion import FOLDER
from st3fx.cli.contradictions import Needs, require_apart, rules
from st3fx.cli.options import (
    DATA_SETTINGS,
    Numbers,
    data_options,
    force_option,
    given,
    json_option,
    trust_options,
)
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.sweep import print_sweep


@click.command()
@click.argument("run", metavar="RUN", type=FOLDER)
@click.option(
    "--sparsity", "sparsities", type=Numbers(), default="0.5,0.8,0.9,0.95", show_default=True,
    metavar="A,B,...", help="Shares of the sites' weights to prune; that of the training is added.",
)  # fmt: skip
@click.option(
    "--calibrate", type=click.IntRange(0), metavar="N",
    help="Training batches to take batch-norm statistics from, at each sparsity; 0 keeps those of "
    "training.  [default: as many as in training]",
)  # fmt: skip
@data_options
@click.option(
    "--bench/--no-bench", default=True, show_default=True,
    help="Measure how long a call takes, side by side, dense too.",
)  # fmt: skip
@click.option(
    "-ncores", "--threads", type=click.IntRange(1), metavar="N",
    help="Threads for one call.  [default: one for each physical core]",
)  # fmt: skip
@click.option(
    "-t", "--time", "seconds", type=float, default=3.0, show_default=True, metavar="S",
    help="Seconds of timed calls for each file.",
)  # fmt: skip
@click.option(
    "--int8", is_flag=True,
    help="Quantize each sparsity after training, and score and measure it in 8-bit integers too.",
)  # fmt: skip
@click.option(
    "--pick", metavar="CONDITION",
    help="Write the sparsest that holds it, e.g. 'drop<0.5': accuracy (percent), drop (points "
    "below the training's own sparsity), sparsity, macs, bytes or ms; <, <=, > or >=; a number, "
    "which may end in k, M or G.",
)  # fmt: skip
@click.option(
    "--into", type=FOLDER, metavar="DIR",
    help="With --pick, where: a bundle, and the folded weights as safetensors and compact.  "
    "[default: picked beside the page]",
)  # fmt: skip
@click.option(
    "-o", "--output", metavar="FILE",
    help="The page; beside it the same as JSON.  [default: sweep.html in the run; NAME.sweep.html "
    "beside a bundle]",
)  # fmt: skip
@click.option("--png", "pictures", metavar="DIR", help="Write the charts as PNG files too.")
@trust_options
@force_option("files that no sweep wrote, and what was picked before")
@json_option
@rules(
    Needs("into", "pick"),
    Needs("threads", "bench"),
    Needs("seconds", "bench"),
)
def sweep(
    *,
    run: str,
    sparsities: tuple[float, ...],
    bench: bool,
    threads: int | None,
    seconds: float,
    output: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Score, count and time one trained model at many sparsities, and choose one.

    RUN is the folder of st3fx train, or a bundle with --data. All sparsities are set from the same
    latent weights, without more training; batch norm takes its statistics anew, as at the end of a
    training, so that the row of the training's own sparsity is what the training has reported. A
    training with --draw-sparsity has trained for all that it drew.

    The table, a page with charts of accuracy against multiplications, bytes and time, and a JSON
    file have accuracy on the test data, multiplications that are left, bytes of the compact file,
    and the time of a call in ONNX Runtime, of the faster of the plain file and that with sparse
    kernels.

    \b
    Examples
      st3fx sweep runs/resnet20
      st3fx sweep runs/resnet20 --sparsity 0.8,0.9,0.95,0.97 --no-bench
      st3fx sweep runs/resnet20 --pick 'drop<0.5' --into small
      st3fx sweep resnet50.st3fx --data imagefolder --data-path ~/imagenet --int8
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.bench.variant import BenchSettings
    from st3fx.commands.sweep import sweep as run_sweep

    require_apart({"--output": output, "--into": asked["into"], "--png": asked["pictures"]}, (run,))
    data = given({name: asked.pop(name) for name in DATA_SETTINGS})
    settings = BenchSettings(threads=() if threads is None else (threads,), seconds=seconds)
    with stdout_for(as_json=as_json), Progress(refresh=2.0) as progress:
        result = run_sweep(
            run, sparsities, bench=settings if bench else False, page=output, data=data,
            progress=progress, **asked,
        )  # fmt: skip
    show(result, print_sweep, as_json=as_json)
