"""From a model with an example to a smaller graph without its dead channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ShapesCollection

from st3fx.core.state import preserved
from st3fx.export.batch import Dim, batch_size, dimension, repeated
from st3fx.export.call import Call
from st3fx.export.capture import refusal
from st3fx.export.quiet import quiet
from st3fx.passes.channels.eliminate import eliminate
from st3fx.passes.channels.report import ChannelReport


def reduce(
    model: nn.Module, call: Call, batched: Sequence[Dim], *, fixed_batch: bool
) -> tuple[fx.GraphModule, ChannelReport]:
    """Remove a model's dead channels.

    Args:
        model: In eval mode.
        call: The example.
        batched: Which dimension of its tensors is the batch.
        fixed_batch: Leave the batch size as it is in the example.

    Returns:
        A graph that is called as the model is, and what was removed.

    Raises:
        ExportError: When the model cannot be captured, or the batch cannot be free.
    """
    free = batch_size(call.tensors, batched) is not None and not fixed_batch
    which = batched if free else ()
    with quiet():
        try:
            return eliminate(captured(model, call, samples(call, which), which))
        except Exception as error:  # noqa: BLE001 (its message says what matters of the cause)
            raise refusal(error, model, type(model).__name__, free=free) from None


def samples(call: Call, batched: Sequence[Dim]) -> Sequence[Tensor]:
    """The example's tensors, of two samples or more where the batch is free."""
    size = batch_size(call.tensors, batched) if batched else None
    # One sample is no example of a batch: a size of 1 is broadcast too.
    return call.tensors if size is None else repeated(call.tensors, batched, max(2, size))


def captured(
    model: nn.Module, call: Call, tensors: Sequence[Tensor], batched: Sequence[Dim]
) -> ExportedProgram:
    """A model as ``torch.export`` sees it; the tensors' dimensions in ``batched`` are free."""
    given = [tensor.clone() for tensor in tensors]
    args, kwargs = call.arguments(given)
    shapes = ShapesCollection()
    for tensor, has in zip(given, batched, strict=False):
        place = dimension(has)
        if place is not None:
            shapes[tensor] = {place: torch.export.Dim.DYNAMIC}
    with preserved(model):  # attributes that a forward sets would keep its stand-ins
        return torch.export.export(
            model, args, kwargs, dynamic_shapes=shapes if batched else None, strict=False
        )
