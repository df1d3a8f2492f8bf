"""``st3fx bench``: how fast a model runs, dense against folded."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import click

from st3fx.cli.completion import Spec
from st3fx.cli.contradictions import Alone, Apart, require_apart, rules
from st3fx.cli.options import force_option, json_option, prune_options, trust_options
from st3fx.cli.output import show
from st3fx.cli.views.bench import print_bench, print_calibration
from st3fx.cli.views.progress import Progress

TORCH_MODES = ("eager", "compile")
"""They equal those of ``st3fx.bench.variant``, as a test sees to."""


def _shapes(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """``SHAPE[:DTYPE]`` texts; ``[1,3,224,224],[1,8]`` is taken too, as two of them."""
    found: list[str] = []
    for text in texts:
        lists = re.findall(r"\[([\d\s,]*)\]", text)
        found += ["x".join(re.findall(r"\d+", sizes)) or "scalar" for sizes in lists] or [text]
    return tuple(found)


def _numbers(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[int, ...]:
    """All numbers in ``1`` and ``2,4``."""
    try:
        return tuple(int(part) for text in texts for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{', '.join(texts)!r}: give whole numbers, e.g. 8 or 1,8", context, option
        ) from error


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, type=Spec())
@click.option(
    "-b", "--batch-size", "batch_sizes", multiple=True, callback=_numbers, metavar="N",
    help="Samples in one call. Repeatable.  [default: as --input has it, else 1]",
)  # fmt: skip
@click.option(
    "-i", "--input", "--shapes", "inputs", multiple=True, callback=_shapes,
    metavar="SHAPE[:DTYPE]",
    help="Size of an input, e.g. 1x3x224x224 or 1x128:int64, scalar for one of no dimension; "
    "[1,3,224,224] will do. Repeat it for every input. Without it, the example of the model, or "
    "the sizes in the graph.",
)  # fmt: skip
@click.option(
    "-ncores", "--threads", multiple=True, callback=_numbers, metavar="N",
    help="Threads for one call, at most those that the machine runs at once. Repeatable.  "
    "[default: one for each physical core]",
)  # fmt: skip
@click.option(
    "-t", "--time", "seconds", type=float, default=10.0, show_default=True, metavar="S",
    help="Seconds of timed calls for each variant, at each batch size and number of threads.",
)  # fmt: skip
@click.option("--iterations", type=int, metavar="N", help="So many timed calls instead of -t.")
@click.option(
    "-w", "--warmup", type=float, default=2.0, show_default=True, metavar="S",
    help="Seconds of calls before, for each variant.",
)  # fmt: skip
@click.option(
    "--provider", "providers", multiple=True, default=("cpu",), show_default=True, metavar="NAME",
    help="Execution provider of ONNX Runtime, e.g. cpu or cuda. Repeat it for those to fall back "
    "on.",
)  # fmt: skip
@click.option(
    "--torch", "torch_modes", multiple=True, type=click.Choice(TORCH_MODES),
    help="Measure the folded model in PyTorch too. Repeatable.",
)  # fmt: skip
@click.option(
    "--sparse-kernels/--no-sparse-kernels", default=True,
    help="Measure models with zeros by sparse kernels too.  [default: yes]",
)  # fmt: skip
@click.option("--custom-ops", metavar="FILE", help="A library with operators that a graph needs.")
@click.option("--fixed-batch", is_flag=True, help="Export with the example's batch size built in.")
@click.option("--weights", metavar="FILE", help="Weights to load into a SPEC.")
@prune_options
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", default=0, show_default=True,
    help="For random weights, inputs and the order of the rounds.",
)  # fmt: skip
@click.option(
    "--calibrate", is_flag=True,
    help="Measure the constants of the cost model of the sparse kernels on this machine instead, "
    "about a minute. st3fx export uses them from then on.",
)  # fmt: skip
@click.option("-x", "--export", "target", metavar="FILE", help="Write the result as JSON.")
@trust_options
@force_option("a file that is already there")
@json_option
@rules(
    Alone("calibrate", ("as_json",)),
    Apart("iterations", "seconds", "so many calls, or calls for so long"),
    Apart("sparsity", "allow_dense", "pruned now, or taken as it is"),
)
def bench(
    *,
    models: tuple[str, ...],
    torch_modes: tuple[str, ...],
    target: str | None,
    fixed_batch: bool,
    force: bool,
    as_json: bool,
    seed: int,
    calibrate: bool,
    **asked: Any,
) -> None:
    """Measure latency and throughput of MODEL in ONNX Runtime, dense against folded.

    MODEL is the folder of a training, a bundle, a SPEC as for st3fx export, or an ONNX file. It is
    folded and exported, and measured beside its dense counterpart: the same graph with a small
    random number in the place of every zero weight; and, where it has zeros, by sparse kernels. Of
    several MODELs, all are compared with the first; a first one that is an ONNX file is the
    baseline itself. All must be called with inputs of the same sizes: --input gives them to files
    that leave them free.

    A run that st3fx quantize has written a file of 8-bit integers for, or such a file alone, is
    measured in integers too: the dense counterpart of that file, in which a zero becomes 1 or -1,
    and what INT8 kernels that skip blocks of zeros make of it.

    Each variant has a process of its own. After warm-up they are called in rounds, each variant in
    each round, in random order, and the ratio is taken round by round: what else the machine does
    slows neighbours down alike. Denormals are zero; the threads of ONNX Runtime spin while a call
    runs and not between calls. Memory is the peak that loading and running add to the process, to
    be compared within one runtime.

    \b
    Examples
      st3fx bench runs/resnet20
      st3fx bench torchvision:resnet50 -i 1x3x224x224 --sparsity 0.9 -b 1 -b 8 -ncores 1 -ncores 2
      st3fx bench dense.onnx sparse.onnx -t 30 -x out.json
      st3fx bench runs/resnet20/model.st3fx --torch eager --torch compile
      st3fx bench --calibrate
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    if calibrate:
        _calibrate(as_json=as_json)
        return
    if not models:
        raise click.UsageError("Missing argument 'MODEL...'.")
    from st3fx.bench.variant import BenchSettings
    from st3fx.commands.bench import benchmark
    from st3fx.commands.models import Request
    from st3fx.errors import BenchError
    from st3fx.files.atomic import check_file

    about = ("inputs", "weights", "sparsity", "allow_dense", "trust", "model")
    requests = [Request(spec, **{key: asked[key] for key in about}, seed=seed) for spec in models]
    rest = {key: value for key, value in asked.items() if key not in about}
    settings = BenchSettings(**rest, torch=torch_modes, seed=seed)
    path = None
    if target is not None:
        path = check_file(target, force=force, error=BenchError, in_folder=True)
        require_apart({"--export": path}, (*models, asked["weights"], asked["custom_ops"]))
    # A model's own file may print: that must not mix with the result.
    quiet = contextlib.redirect_stdout(sys.stderr)
    with quiet, Progress(refresh=2) as report:
        result = benchmark(*requests, settings=settings, fixed_batch=fixed_batch, progress=report)
    if path is not None:
        result.write(path)
    show(result, print_bench, as_json=as_json)


def _calibrate(*, as_json: bool) -> None:
    from st3fx.commands.calibrate import calibrate

    with Progress(refresh=2) as report:
        result = calibrate(progress=report)
    show(result, print_calibration, as_json=as_json)
