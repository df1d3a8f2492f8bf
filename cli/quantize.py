"""``st3fx quantize``: write a trained model as ONNX with 8-bit integers."""

from __future__ import annotations

import functools
import sys
from typing import Any

import click

from st3fx.cli.completion import ONNX
from st3fx.cli.contradictions import Apart, Needs, require_apart, rules
from st3fx.cli.options import (
    DATA_SETTINGS,
    data_options,
    force_option,
    given,
    json_option,
    model_options,
    prune_options,
    trust_options,
)
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.display import make_report
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.quantize import print_quantize

CALIBRATIONS = ("minmax", "percentile", "entropy", "dynamic")
"""They equal those of ``st3fx.quantization.settings``, as a test sees to."""


@click.command()
@model_options
@prune_options
@click.option(
    "-o", "--output", type=ONNX, metavar="FILE",
    help="The file.  [default: model.int8.onnx in a run, else NAME.int8.onnx]",
)  # fmt: skip
@data_options
@click.option(
    "--calibration", type=click.Choice(CALIBRATIONS), default="minmax", show_default=True,
    help="The range of an activation: of all its values, without the rarest, that whose "
    "histogram loses least, or that of each call, which the file finds itself (linear layers "
    "alone).",
)  # fmt: skip
@click.option(
    "--percentile", type=float, metavar="X", default=99.99, show_default=True,
    help="With --calibration percentile, how many of a hundred values a range keeps.",
)  # fmt: skip
@click.option(
    "--calibration-images", type=click.IntRange(1), metavar="N", default=256, show_default=True,
    help="Training samples to calibrate on.",
)  # fmt: skip
@click.option(
    "--keep-fp32", multiple=True, metavar="NAME",
    help="A layer that stays in fp32, by its name or a glob like layer1.*. Repeatable.",
)  # fmt: skip
@click.option(
    "--max-drop", type=float, metavar="POINTS",
    help="Leave as many layers in fp32 as needed to lose no more points of accuracy than this, on "
    "training samples that calibration has not seen.",
)  # fmt: skip
@click.option(
    "--held-out-images", type=click.IntRange(1), metavar="N", default=1024, show_default=True,
    help="How many these are.",
)  # fmt: skip
@click.option(
    "--test-images", type=click.IntRange(1), metavar="N",
    help="Score on so many of the test samples.  [default: all]",
)  # fmt: skip
@click.option(
    "--weight-range", type=click.Choice(("safe", "full")), default="safe", show_default=True,
    help="safe: no product overflows on any CPU. full: all of an int8, which rounds a little less "
    "and is wrong on x86 without VNNI.",
)  # fmt: skip
@click.option(
    "--rank/--no-rank", default=True, show_default=True, help="Try each layer in fp32 by itself."
)
@click.option(
    "--sparse-kernels", is_flag=True,
    help="Write a second file beside it, NAME.int8.sparse.onnx, in which the layers that gain run "
    "by INT8 kernels that skip blocks of zeros, in sessions that st3fx.runtime.session opens.",
)  # fmt: skip
@click.option(
    "--finetune", type=click.IntRange(1), metavar="EPOCHS",
    help="Train for so many epochs with everything rounded as in the file; zeros stay.",
)  # fmt: skip
@click.option(
    "--lr", type=float, metavar="X",
    help="With --finetune, the learning rate, which falls to zero along a cosine.  "
    "[default: 0.0003]",
)  # fmt: skip
@click.option(
    "--learn-scales", is_flag=True,
    help="With --finetune, train the scales of activations too; else they stay calibration's.",
)  # fmt: skip
@click.option(
    "--opset", type=int, metavar="N", help="Of the file, from 13 on.  [default: PyTorch's own]"
)
@click.option("-x", "--export", "record", metavar="FILE", help="Write the result as JSON.")
@trust_options
@force_option("files that are already there")
@json_option
@rules(
    Apart("sparsity", "allow_dense", "pruned now, or taken as it is"),
    Needs("percentile", "calibration", "percentile"),
    Needs("held_out_images", "max_drop"),
    Needs("lr", "finetune"),
    Needs("learn_scales", "finetune"),
)
def quantize(
    *,
    output: str | None,
    calibration_images: int,
    held_out_images: int,
    test_images: int | None,
    finetune: int | None,
    lr: float | None,
    learn_scales: bool,
    opset: int | None,
    record: str | None,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write SPEC as ONNX with 8-bit integers, and check the file.

    SPEC is the folder of a training, its bundle, or a model as for st3fx export with --data. It is
    folded and exported in fp32, calibrated on its training data, and quantized by ONNX Runtime's
    quantizer: activations uint8, weights int8 with one scale for each output channel. The file runs
    in the stock ONNX Runtime.

    It is there only if every zero of the weights is still a zero, and if its outputs are those of
    the fp32 file up to rounding. Both are scored on the test data. Each layer is tried in fp32 by
    itself, to say what it costs. With --max-drop those that cost most stay in fp32, as many as
    needed: by training samples that calibration has not seen, so that the test data, which has
    chosen nothing, tells what came of it.

    With --finetune the file is trained, with everything rounded as in it, to give what the fp32
    file gives on the training samples: weights and biases move, zeros do not. On a GPU where there
    is one. Its steps are logged in RUN/finetune.jsonl. What stays in fp32 is chosen before.

    With --sparse-kernels a second file has our INT8 kernels, which skip blocks of zeros: train with
    --granularity block:4 for it. Its outputs and its accuracy are those of the first.

    \b
    Examples
      st3fx quantize runs/resnet20
      st3fx quantize runs/resnet20 --sparse-kernels
      st3fx quantize runs/resnet20 --finetune 1
      st3fx quantize runs/resnet20 --max-drop 0.2
      st3fx quantize runs/resnet20/model.st3fx --calibration percentile --keep-fp32 conv1
      st3fx quantize torchvision:resnet50 --weights folded.safetensors --data imagefolder \\
        --data-path ~/imagenet
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.models import Request
    from st3fx.commands.quantize import Images, quantize_spec, subject
    from st3fx.errors import QuantizeError
    from st3fx.export.quantized import default_name
    from st3fx.export.settings import check_opset
    from st3fx.files.atomic import check_file
    from st3fx.quantization.finetune import Course
    from st3fx.quantization.settings import Settings

    about = ("spec", "weights", "inputs", "seed", "sparsity", "allow_dense", "trust", "model")
    request = Request(**{name: asked[name] for name in about})
    found = subject(request, given({name: asked[name] for name in DATA_SETTINGS}))
    check_opset(opset)
    names = ("calibration", "percentile", "keep_fp32", "max_drop", "weight_range", "rank",
             "sparse_kernels")  # fmt: skip
    settings = Settings(**{name: asked[name] for name in names})
    # Now rather than after minutes of work.
    target = check_file(output or found.target, force=force, error=QuantizeError)
    # Its form with our kernels goes too, whether or not there will be a new one.
    check_file(target.with_name(default_name(target)), force=force, error=QuantizeError)
    path = (
        None
        if record is None
        else check_file(record, force=force, error=QuantizeError, in_folder=True)
    )
    require_apart({"--output": target, "--export": path}, (request.spec, request.weights))
    images = Images(calibration_images, held_out_images, test_images)
    rate = Course.lr if lr is None else lr
    course = None if finetune is None else Course(finetune, rate, learn_scales)
    work = functools.partial(quantize_spec, found, target, settings, images, opset=opset)
    with stdout_for(as_json=as_json):
        if course is None:
            with Progress() as progress:
                result = work(progress=progress)
        else:
            with make_report(sys.stderr if as_json else sys.stdout) as report:
                result = work(progress=report.stage, course=course, report=report)
    if path is not None:
        result.write(path)
    show(result, print_quantize, as_json=as_json)
