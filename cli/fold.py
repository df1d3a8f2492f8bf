"""``st3fx fold``: write the sparse weights of a model for its own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from st3fx.cli.completion import WEIGHTS
from st3fx.cli.contradictions import Apart, require_apart, rules
from st3fx.cli.options import force_option, json_option, model_options, prune_options, trust_options
from st3fx.cli.output import show, stdout_for
from st3fx.cli.views.outcome import print_fold
from st3fx.cli.views.progress import Progress


@click.command()
@model_options
@prune_options
@click.option(
    "-o", "--output", type=WEIGHTS, metavar="FILE",
    help="The file; of weights in shards the folder.  [default: NAME.safetensors, NAME.st3w with "
    "--compact, NAME.folded of shards]",
)  # fmt: skip
@click.option(
    "--compact", is_flag=True,
    help="Write one bit for each weight and the values that are not zero. st3fx.load_compact "
    "reads it. A FILE that ends in .st3w is written so too.",
)  # fmt: skip
@click.option(
    "--eliminate-dead-channels", is_flag=True,
    help="Remove channels that are constant or that nothing reads. The model's own class cannot "
    "lose any: NAME.pt2 has a graph of plain operators with the smaller weights, which "
    "torch.export.load(FILE).module() gives back without st3fx.",
)  # fmt: skip
@trust_options
@force_option("a file that is already there")
@json_option
@rules(
    Apart("sparsity", "allow_dense", "pruned now, or taken as it is"),
    Apart("compact", "eliminate_dead_channels",
          "a graph without dead channels is no state dict: it is written as .pt2"),
)  # fmt: skip
def fold(
    *,
    output: str | None,
    compact: bool,
    eliminate_dead_channels: bool,
    force: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the folded weights of SPEC: static, with zeros where it was pruned.

    SPEC is a bundle, before or after training, or a model as for st3fx convert. The weights are
    a state dict with the keys of the model's own class, which loads them without st3fx:
    model.load_state_dict(safetensors.torch.load_file("resnet20.safetensors")).

    A bundle of a model on the meta device has no weights: those of --weights are folded in their
    files, shard by shard, into a folder of shards with an index as Hugging Face writes them.

    \b
    Examples
      st3fx fold runs/resnet20/model.st3fx
      st3fx fold resnet50.st3fx --sparsity 0.9 -o sparse.safetensors
      st3fx fold resnet50.st3fx --compact
      st3fx fold resnet50.st3fx --sparsity 0.95 --eliminate-dead-channels
      st3fx fold llama.st3fx --weights llama/ --sparsity 0.5 -o sparse/
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    from st3fx.commands.fold import SUFFIX, fold_reduced, fold_spec
    from st3fx.commands.models import Request
    from st3fx.files import compact as compact_file
    from st3fx.files.atomic import check_file

    request = Request(**asked)
    compact = compact or (output or "").endswith(compact_file.SUFFIX)
    if compact and output and not output.endswith(compact_file.SUFFIX):
        raise click.UsageError(
            f"-o {output}: a compact file is named *{compact_file.SUFFIX}, by which it is read"
        )
    if compact and eliminate_dead_channels:
        raise click.UsageError(f"-o {output}: a graph without dead channels is written as .pt2")
    suffix = compact_file.SUFFIX if compact else ".safetensors"
    suffix = SUFFIX if eliminate_dead_channels else suffix
    # Now rather than after minutes of work.
    if request.in_shards:
        target = Path(output or f"{request.name}.folded")
    else:
        target = check_file(output or f"{request.name}{suffix}", force=force)
    require_apart({"--output": target}, (request.spec,))
    with stdout_for(as_json=as_json), Progress() as report:
        if eliminate_dead_channels:
            result = fold_reduced(request, target, progress=report)
        else:
            result = fold_spec(request, target, compact=compact, force=force, progress=report)
    show(result, print_fold, as_json=as_json)
