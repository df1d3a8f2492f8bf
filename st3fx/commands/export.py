"""From a model to an ONNX file, or to a graph without dead channels: ``st3fx export``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from st3fx.api import fold
from st3fx.commands.models import Request, folded, no_example
from st3fx.commands.progress import silent
from st3fx.errors import EmptyLayerWarning, ExportError
from st3fx.export.batch import FreeSize, batched
from st3fx.export.call import Call
from st3fx.export.capture import quiet
from st3fx.export.engine import export
from st3fx.export.export_result import ExportResult
from st3fx.export.reduced import check_reduced, reduce
from st3fx.export.settings import Settings
from st3fx.export.weights import size_of_tensors
from st3fx.modules.copying import copied
from st3fx.modules.state import preserved, to_eval
from st3fx.modules.unwrap import is_masked, make_permanent, unwrapped
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.convert.fold import is_converted
from st3fx.plan.example import Example
from st3fx.whose import callers_level


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    sparse_kernels: bool = False,
    example_kwargs: Mapping[str, Any] | None = None,
    opset: int | None = None,
    fixed_batch: bool = False,
    free: Mapping[str, Mapping[int, str]] | None = None,
    batch_sizes: Sequence[int] = (1, 3),
    verify: bool = True,
    sparse_initializers: bool = False,
    eliminate_dead_channels: bool | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Write a model as ONNX and compare the file with it.

    Goes through ``torch.onnx.export(dynamo=True)``. Dimension 0 of the inputs is free, inputs are
    named after the arguments of ``forward`` and outputs after keys and fields of what it returns.
    Batch norm is folded into the layer before it where that leaves the weight's zeros the only
    ones. Then ``onnx.checker``, the number of zeros of every initializer, and ONNX Runtime against
    PyTorch must hold; otherwise no file is left.

    Args:
        model: A folded model, or any other; a converted one is folded first, on a copy, and masks
            of ``torch.nn.utils.prune`` become zeros of the weights there. Its mode, buffers and
            random generators stay as they are.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments,
            as the model is called in eval mode. Arguments that are no tensors are built in.
        path: The file; one that is there is replaced. Weights of more than 1.5 GB go into
            ``<path>.data`` beside it.
        sparse_kernels: The layers that the cost model expects to gain run by sparse kernels, in
            sessions that ``st3fx.runtime.session`` opens. The plain file, which runs everywhere, is
            written beside it: ``model.plain.onnx`` beside ``model.onnx``, ``model.onnx`` beside
            ``model.sparse.onnx``. Both are compared; see ``tolerance``.
        example_kwargs: Keyword arguments beside positional ``example_inputs``.
        opset: Of the file, from 13 on; ``None`` for the exporter's default.
        fixed_batch: Build the batch size of the example in.
        free: Other sizes that are free in the file, ``{"input_ids": {1: "sequence"}}``: input ->
            dimension -> name. It is compared at one size less and three more than the example's.
            ``{"state": {1: "batch"}}`` says where the batch is, if it is not dimension 0.
        batch_sizes: That the comparison draws random values for, beside the example.
        verify: Run the file in ONNX Runtime and compare.
        sparse_initializers: Store weights as index and value where that is smaller. It saves disk
            alone: ONNX Runtime makes them dense when it loads them. Of the runtimes that were
            tried no other reads such a file, and no quantizer does: give those the one without.
        eliminate_dead_channels: Remove channels that are constant or that nothing reads: the same
            outputs from a smaller dense graph. ``None``: only where kernels are sparse.
        tolerance: Largest difference that passes, over the largest magnitude of the same output;
            ``None`` for 1e-4, or 1e-2 with float16 and 5e-2 with bfloat16 weights.
        seed: Of the random values.
        progress: Called with the name of each stage as it begins.

    Returns:
        Names, sizes, parity and the check of the zeros.

    Raises:
        InputError: When the model refuses the example.
        ExportError: When ONNX cannot express the model, a check fails, or the file cannot be
            written.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"model is a {type(model).__name__}: give an nn.Module")
    settings = Settings(
        opset=opset,
        fixed_batch=fixed_batch,
        batch_sizes=tuple(batch_sizes),
        verify=verify,
        sparse_initializers=sparse_initializers,
        eliminate_dead_channels=eliminate_dead_channels,
        tolerance=tolerance,
        seed=seed,
        sparse_kernels=sparse_kernels,
        free=FreeSize.of(free),
    )
    example = Example.of(example_inputs, example_kwargs, model)
    before = partial(size_of_tensors, "weights before", unwrapped(model).state_dict())
    result = export(
        plain(model), example, Path(path), settings, before=before, progress=progress or silent
    )
    if result.says_little:
        warnings.warn(
            f"{path}: {result.says_little}", EmptyLayerWarning, stacklevel=callers_level()
        )
    return result


def export_spec(
    request: Request,
    path: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> ExportResult:
    """Export the model of a bundle or a SPEC.

    Args:
        request: Which model, and how sparse.
        path: The file; one that is there is replaced.
        progress: Called with the name of each stage as it begins.
        **options: Fields of ``st3fx.export.settings.Settings``.

    Raises:
        St3fxError: As ``st3fx.commands.models.folded`` and :func:`export_onnx`.
    """
    report, settings = progress or silent, Settings(**options)
    model = folded(request, report, with_example=True)
    if model.example is None:
        raise no_example(request.spec)
    return export(
        model.model,
        Example.of(model.example),
        Path(path),
        settings,
        before=lambda: model.before,
        progress=report,
    )


def plain(model: nn.Module) -> nn.Module:
    """A model without anything of ours, on the CPU; the given one where it is that already.

    Masks of torch.nn.utils.prune are in its weights.
    """
    model = unwrapped(model)
    if is_converted(model):
        model = fold(model)
    if is_masked(model):
        model = make_permanent(copied(model))
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        model = copied(model).cpu()
    return model


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
