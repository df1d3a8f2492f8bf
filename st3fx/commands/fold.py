"""From a bundle or a SPEC to a file of folded weights: ``st3fx fold``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from st3fx.commands.models import Request, folded, no_example
from st3fx.commands.progress import silent
from st3fx.commands.stream import fold_stored
from st3fx.errors import ExportError
from st3fx.export.export_result import FoldResult, Size
from st3fx.export.weights import size_of_files, write_weights
from st3fx.files.bundle import read_bundle
from st3fx.modules.state import preserved, to_eval
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.plan.example import Example

SUFFIX = ".pt2"
"""The suffix of a program as ``torch.export`` saves it."""


def fold_spec(
    request: Request,
    path: str | Path,
    *,
    compact: bool = False,
    force: bool = True,
    progress: Callable[[str], None] | None = None,
) -> FoldResult:
    """Write the folded weights of a bundle or a SPEC.

    Args:
        request: Which model, and how sparse. A bundle without weights, with ``weights``: they are
            folded in their files, into files of the same layout.
        path: The file; one that is there is replaced. Of weights in shards it is a folder.
        compact: Write a compact file (``st3fx.load_compact`` reads it) instead of safetensors.
        force: Whether folded shards that are there are replaced.
        progress: Called with the name of each stage as it begins.

    Raises:
        St3fxError: As ``st3fx.commands.models.folded``, and when the file cannot be written.
    """
    report, target = progress or silent, Path(path)
    if request.is_bundle and request.weights is not None:
        bundle = read_bundle(request.spec)
        if bundle.manifest.absent:
            if compact:
                raise ExportError("weights in their files are folded into safetensors, no .st3w")
            return fold_stored(
                bundle, request.weights, target, sparsity=request.sparsity,
                allow_dense=request.allow_dense, force=force, progress=report,
            )  # fmt: skip
    model = folded(request, report, with_example=False, weights_only=True)
    report("save")
    write_weights(model.model.state_dict(), target, compact=compact)
    report("measure")
    return _result(
        target, "compact" if compact else "safetensors", model.tensors(), model.before,
        parameters=model.numel,
    )  # fmt: skip


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
        St3fxError: As :func:`st3fx.commands.models.folded` and ``st3fx.eliminate_dead_channels``,
            and when the file cannot be written.
    """
    # The exporter brings ONNX and ONNX Runtime, which a fold to weights has no use for.
    from st3fx.export.batch import batched  # noqa: PLC0415
    from st3fx.export.call import Call  # noqa: PLC0415
    from st3fx.export.reduced import check_reduced, reduce, write_reduced  # noqa: PLC0415

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
    return _result(
        target, "pt2", weights, model.before, parameters=channels.parameters[1], channels=channels
    )


def _result(
    target: Path,
    kind: str,
    weights: Mapping[str, Tensor],
    before: Size,
    *,
    parameters: int,
    channels: ChannelReport | None = None,
) -> FoldResult:
    """Look at what was written."""
    counts = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    elements = sum(weight.numel() for weight in weights.values())
    return FoldResult(
        path=target,
        format=kind,
        weights=len(weights),
        elements=elements,
        zeros=elements - sum(counts.values()),
        parameters=parameters,
        empty=tuple(name for name, count in counts.items() if not count),
        sizes=(before, size_of_files(target.name, [target])),
        channels=channels,
    )
