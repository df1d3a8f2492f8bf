"""``st3fx inspect``: what a file or folder is, without running anything of it."""

from __future__ import annotations

import click

from st3fx.cli.completion import INSIDE
from st3fx.cli.contradictions import Apart, rules
from st3fx.cli.options import json_option
from st3fx.cli.output import say, stdout_for
from st3fx.cli.views.progress import Progress


@click.command()
@click.argument("path", metavar="PATH", type=INSIDE)
@click.option("--top", type=click.IntRange(0), metavar="N", default=6, show_default=True,
              help="List so many layers, those with most weights.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="List all layers, skipped weights and "
              "settings.")  # fmt: skip
@json_option
@rules(Apart("top", "everything", "so many layers, or all"))
def inspect(*, path: str, top: int, everything: bool, as_json: bool) -> None:
    """Say what PATH is: kind, model, method, sparsity, digests, layers, and what to do next.

    PATH is a bundle, the folder of a training, an ONNX file (anybody's, or ours with sparse
    kernels or in integers), a file of weights (.st3w, safetensors, torch.save), an index of shards
    (model.safetensors.index.json) or the folder with it, or a checkpoint. No code that it names
    runs, the model's class is not needed, and tensors are read one by one: a file may be larger
    than the memory. All digests are checked; a file that is damaged is an error.

    \b
    Examples
      st3fx inspect resnet50.st3fx
      st3fx inspect runs/resnet20 --top 3
      st3fx inspect model.sparse.onnx --all
      st3fx inspect folded.safetensors --json
    """  # noqa: D301 (click's mark for a paragraph that is not re-wrapped)
    import json

    from st3fx.cli.views.inspect import print_found
    from st3fx.commands.inspect import look

    with stdout_for(as_json=as_json), Progress() as report:
        report("look")
        found = look(path)
    if as_json:
        say(json.dumps(found.to_dict(), indent=1))
    else:
        print_found(found, None if everything else top)
