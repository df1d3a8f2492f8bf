"""Models without their dead channels: the facade's verbs that give a graph of plain operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from st3fx.core.inputs import Example
from st3fx.core.state import preserved, to_eval
from st3fx.errors import ExportError
from st3fx.export.batch import batched
from st3fx.export.call import Call
from st3fx.export.quiet import quiet
from st3fx.export.reduce import reduce
from st3fx.export.reduced_file import check_reduced, write_reduced
from st3fx.export.result import FoldResult
from st3fx.export.sizes import size_of_files
from st3fx.passes.channels.report import ChannelReport
from st3fx.verbs.deploy import plain
from st3fx.verbs.folded import Request, folded, no_example

SUFFIX = ".pt2"
"""Of a program as ``torch.export`` saves it."""


def eliminate_dead_channels(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    fixed_batch: bool = False,
) -> tuple[fx.GraphModule, ChannelReport]:
    """A smaller dense graph that computes what a folded model does.

    Filters without a nonzero give constant channels; those, and channels that nothing reads, are
    removed with all that is computed from or for them alone. The order of additions is another one:
    outputs are equal up to rounding, which is checked on the example.

    Args:
        model: A folded model, or any other; a converted one is folded first, on a copy.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments,
            as the model is called in eval mode. Arguments that are no tensors are built in.
        example_kwargs: Keyword arguments beside positional ``example_inputs``.
        fixed_batch: Build the batch size of the example in.

    Returns:
        A graph of plain operators on the CPU, called as the model is, for inference; and what was
        removed. Parameters have the model's names, and smaller shapes.

    Raises:
        ExportError: When ``torch.export`` cannot capture the model, or an output differs.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}: give an nn.Module")
    model = plain(model)
    call = Call.of(model, Example.of(example_inputs, example_kwargs, model))
    with preserved(model), torch.no_grad():
        to_eval(model)
        graph, report = reduce(model, call, batched(call.tensors), fixed_batch=fixed_batch)
        with quiet():
            check_reduced(model, graph, call, strict=False)
        return graph, report


def fold_reduced(
    request: Request, path: str | Path, *, progress: Callable[[str], None]
) -> FoldResult:
    """Write a folded model without its dead channels, as ``torch.export`` saves programs.

    A state dict of the model's own class cannot lose a channel: the file has the graph with it.

    Args:
        request: Which model, and how sparse.
        path: The file; one that is there is replaced.
        progress: Called with the name of each stage as it begins.

    Raises:
        St3fxError: As ``st3fx.verbs.folded.folded`` and :func:`eliminate_dead_channels`, and when
            the file cannot be written.
    """
    target, model = Path(path), folded(request, progress, with_example=True)
    if model.example is None:
        raise no_example(request.spec)
    call = Call.of(model.model, Example.of(model.example))
    which = batched(call.tensors)
    with preserved(model.model), torch.no_grad():
        to_eval(model.model)
        progress("capture")
        graph, channels = reduce(model.model, call, which, fixed_batch=False)
        progress("compare")
        check_reduced(model.model, graph, call)
        progress("save")
        write_reduced(graph, call, which, target)
    progress("measure")
    weights = {name: p for name, p in graph.named_parameters() if p.dim() > 1}
    counts = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    elements = sum(weight.numel() for weight in weights.values())
    return FoldResult(
        path=target,
        format="pt2",
        weights=len(weights),
        elements=elements,
        zeros=elements - sum(counts.values()),
        parameters=channels.parameters[1],
        empty=tuple(name for name, count in counts.items() if not count),
        sizes=(model.before, size_of_files(target.name, [target])),
        channels=channels,
    )
