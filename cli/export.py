"""``st3fx export``: write a model as ONNX and compare the file with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from st3fx.cli.completion import ONNX
from st3fx.cli.contradictions import Apart, is_given, require_apart, rules
from st3fx.cli.options import force_option, json_option, model_options, prune_options, trust_options
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.lowered import print_lowered
from st3fx.cli.views.outcome import print_export
from st3fx.cli.views.progress import Progress

if TYPE_CHECKING:
    from st3fx.export.batch import FreeSize


def _numbers(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """The numbers in ``1,3``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r}: give numbers joined by commas, e.g. 1,3", context, option
        ) from error


def _free(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[FreeSize, ...]:
    """The sizes in ``input_ids:1=sequence``."""
    found = []
    for text in texts:
        match = re.fullmatch(r"(\w+):(\d+)=(\w+)", text)
        if match is None:
            raise click.BadParameter(
                f"{text!r}: give INPUT:DIM=NAME, e.g. input_ids:1=sequence", context, option
            )
        from st3fx.export.batch import FreeSize

        found.append(FreeSize(match[1], int(match[2]), match[3]))
    return tuple(found)


@click.command()
@model_options
@prune_options
@click.option(
    "-o",
    "--output",
    type=ONNX,
    metavar="FILE",
    help="The file.  [default: NAME.onnx, or NAME.sparse.onnx]",
)
@click.option(
    "--opset", type=int, metavar="N", help="Of the file, from 13 on.  [default: PyTorch's own]"
)
@click.option("--fixed-batch", is_flag=True, help="Build the batch size of the example in.")
@click.option(
    "--free", callback=_free, multiple=True, metavar="INPUT:DIM=NAME",
    help="Another size that is free in the file, e.g. input_ids:1=sequence; state:1=batch says "
    "where the batch is, if it is not the first dimension. Repeatable.",
)  # fmt: skip
@click.option(
    "--batch-sizes", callback=_numbers, metavar="N,N", default="1,3", show_default=True,
    help="Compare with PyTorch on random values at these sizes, beside the example.",
)  # fmt: skip
@click.option(
    "--tolerance", type=float, metavar="X",
    help="Largest relative difference that passes.  [default: 1e-4; more for 16-bit weights]",
)  # fmt: skip
@click.option("--no-verify", is_flag=True, help="Do not compare with PyTorch.")
@click.option(
    "--sparse-initializers", is_flag=True,
    help="Store weights as index and value where that is smaller. This saves disk alone: ONNX "
    "Runtime makes them dense when it loads them. It alone reads such files: OpenVINO, TVM, IREE "
    "and tract refuse them, as ONNX Runtime's quantizers do, and onnx_ir drops the weights.",
)  # fmt: skip
@click.option(
    "--eliminate-dead-channels/--keep-dead-channels", default=None,
    help="Remove channels that are constant or that nothing reads: the same outputs from a smaller "
    "dense graph, faster on any runtime.  [default: keep; remove with --sparse-kernels]",
)  # fmt: skip
@click.option(
    "--sparse-kernels", is_flag=True,
    help="Layers that gain run by sparse kernels, in sessions that st3fx.runtime.session opens. "
    "The plain file, which runs everywhere, is written beside it: NAME.onnx beside "
    "NAME.sparse.onnx, which is the default, FILE.plain.onnx beside another FILE.onnx. Of a "
    "quantized ONNX file: NAME.int8.sparse.onnx beside NAME.int8.onnx.",
)  # fmt: skip
@trust_options
@force_option("a file that is already there")
@json_option
@rules(
    Apart("sparsity", "allow_dense", "pruned now, or taken as it is"),
    Apart("no_verify", "tolerance", "nothing is compared"),
    Apart("no_verify", "batch_sizes", "nothing is compared"),
    Apart("fixed_batch", "batch_sizes", "the size is built in"),
)
def export(
    *,
    opset: int | None,
    fixed_batch: bool,
    free: tuple[FreeSize, ...],
    batch_sizes: tuple[int, ...],
    tolerance: float | None,
    no_verify: bool,
    sparse_initializers: bool,
    eliminate_dead_channels: bool | None,
    sparse_kernels: bool,
    output: str | None,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write SPEC as ONNX, folded, and check the file.

    SPEC is a bundle, before or after training, or a model as for st3fx convert. The batch size is
    free in the file. Inputs are named after the arguments of the model's forward, outputs after
    keys and fields of what it returns.

    Of a quantized ONNX file, with --sparse-kernels, the layers that gain get INT8 kernels that skip
    blocks of zeros.

    The file is there only if all checks held: onnx.checker, the number of zeros in every weight,
    and ONNX Runtime against PyTorch on the example and on random values.

    \b
    Examples
      st3fx export runs/resnet20/model.st3fx
      st3fx export resnet50.st3fx --sparse-kernels
      st3fx export resnet50.st3fx --sparsity 0.9 -o sparse.onnx --sparse-initializers
      st3fx export torchvision:resnet50 --weights resnet50.safetensors --input 1x3x224x224
      st3fx export resnet50.int8.onnx --sparse-kernels
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.export import export_spec
    from st3fx.commands.models import Request
    from st3fx.files.atomic import check_file
    from st3fx.runtime.operators import SUFFIX, plain_path

    if asked["spec"].endswith(".onnx"):
        options = {"shapes": asked["inputs"], "verify": not no_verify, "seed": asked["seed"]}
        _lower(asked["spec"], output, options, force=force, as_json=as_json)
        return
    request = Request(**asked)
    # Now rather than after minutes of work.
    name = output or request.name + (SUFFIX if sparse_kernels else ".onnx")
    target = check_file(name, force=force)
    if sparse_kernels:
        check_file(plain_path(target), force=force)
    require_apart({"--output": target}, (request.spec, request.weights))
    with stdout_for(as_json=as_json), Progress() as report:
        result = export_spec(
            request,
            target,
            progress=report,
            opset=opset,
            fixed_batch=fixed_batch,
            free=free,
            batch_sizes=batch_sizes,
            tolerance=tolerance,
            verify=not no_verify,
            sparse_initializers=sparse_initializers,
            eliminate_dead_channels=eliminate_dead_channels,
            sparse_kernels=sparse_kernels,
            seed=request.seed,
        )
    show(result, print_export, as_json=as_json)


_OF_FILES = ("spec", "output", "sparse_kernels", "no_verify", "force", "as_json", "inputs", "seed")
"""Parameters that say something about an ONNX file."""


def _lower(
    spec: str, output: str | None, options: dict[str, Any], *, force: bool, as_json: bool
) -> None:
    """Our kernels for a quantized ONNX file."""
    from st3fx.commands.lower import lower_file, target_of
    from st3fx.errors import ExportError
    from st3fx.files.atomic import check_file

    context = click.get_current_context()
    given = {item for item in context.command.params if is_given(context, str(item.name))}
    if "sparse_kernels" not in {parameter.name for parameter in given}:
        raise ExportError(f"{spec} is an ONNX file already: give --sparse-kernels for INT8 kernels")
    if others := [p.opts[-1] for p in given if p.name not in _OF_FILES]:
        raise ExportError(f"{spec} is an ONNX file: leave out {', '.join(sorted(others))}")
    target = check_file(output or target_of(spec), force=force)
    require_apart({"--output": target}, (spec,))
    with stdout_for(as_json=as_json), Progress() as report:
        result = lower_file(spec, target, progress=report, **options)
    show(result, print_lowered, as_json=as_json)
