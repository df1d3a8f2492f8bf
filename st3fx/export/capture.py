"""Runs torch's exporter: silent, and with an error that names what ONNX cannot express."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from st3fx.core.state import preserved
from st3fx.errors import ExportError
from st3fx.export.batch import Dim, batch_size, dimension, repeated
from st3fx.export.blame import is_fixed_batch, is_known, reason
from st3fx.export.call import Flat
from st3fx.export.free import BATCH, Names, resized
from st3fx.export.opset import EXPORTERS
from st3fx.export.quiet import quiet

_PREFIX = "model."


@dataclass(frozen=True)
class Captured:
    """A model as the exporter sees it.

    Attributes:
        graph: As ONNX.
        program: What that was made from; its nodes have the names of the graph's values.
    """

    graph: ir.Model
    program: ExportedProgram | None


def capture(
    flat: Flat,
    name: str,
    tensors: Sequence[Tensor],
    batched: Sequence[Dim],
    *,
    opset: int | None,
    fixed_batch: bool,
    sizes: Names = (),
) -> Captured:
    """The model as an ONNX graph that is not optimised yet; initializers have state-dict names.

    Args:
        flat: The model, in eval mode.
        name: Of its class, for messages.
        tensors: The example's.
        batched: Which of their dimensions is the batch.
        opset: Of the graph, as far down as the exporter goes; ``None`` for its default.
        fixed_batch: Leave the batch size as it is in the example.
        sizes: Of each tensor the other dimensions that are free, with their names.

    Raises:
        ExportError: When the model cannot be captured, the batch cannot be free, or ONNX lacks an
            operator.
    """
    size = batch_size(tensors, batched)
    free = size is not None and not fixed_batch
    if size is not None and free:
        # One sample is no example of a batch: a size of 1 is broadcast too.
        tensors = repeated(tensors, batched, max(2, size))
    sizes = sizes or tuple({} for _ in tensors)
    tensors = resized(tensors, sizes, 0)
    places = [dimension(has) if free else None for has in batched]
    named = tuple({**({} if place is None else {place: BATCH}), **dims} or None
                  for place, dims in zip(places, sizes, strict=True))  # fmt: skip
    shapes = (named,) if any(named) else None
    # What a forward keeps of its last call (a detector its anchors) must not be of this one.
    with quiet(), preserved(flat):
        try:
            program = torch.onnx.export(
                flat,
                tuple(tensor.clone() for tensor in tensors),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=None if opset is None else max(opset, EXPORTERS),
                optimize=False,
                verbose=False,
            )
        except Exception as error:  # noqa: BLE001 (its message says what matters of the cause)
            others = [other for dims in sizes for other in dims.values()]
            raise refusal(error, flat.model, name, free=free, others=others) from None
    assert program is not None
    _rename(program.model, flat.model)
    return Captured(program.model, program.exported_program)


def refusal(
    error: Exception, model: nn.Module, name: str, *, free: bool, others: Sequence[str] = ()
) -> ExportError:
    """What an exporter's error means to the user.

    Args:
        error: The exporter's.
        model: What was to be exported.
        name: Of its class.
        free: Whether the batch was to be free.
        others: Names of other sizes that were to be.
    """
    if others and is_fixed_batch(error):
        names = " or ".join(dict.fromkeys((*([BATCH] if free else []), *others)))
        return ExportError(f"{name} works for one {names} only, that of the example: leave it out")
    if free and is_fixed_batch(error) and isinstance(model, fx.GraphModule):
        return ExportError(
            f"{name} is a graph that was captured for one batch size only: capture it again with "
            "a free one, by torch.export.export(..., dynamic_shapes=...), or export it with a "
            "fixed batch (--fixed-batch)"
        )
    if free and is_fixed_batch(error):
        return ExportError(
            f"{name} works for one batch size only, that of the example: export it with a fixed "
            "batch (--fixed-batch), take the number out of its forward, or, where the batch is "
            "another dimension of an input than the first, say so (--free INPUT:DIM=batch)"
        )
    line = f"{name} cannot be exported: {reason(error)}"
    if free and not is_known(error):
        line += "; if it is made for one batch size, export it with --fixed-batch"
    return ExportError(line)


def _rename(graph: ir.Model, model: nn.Module) -> None:
    """Take the wrapper's prefix off the initializers; a tied one gets the first of its names."""
    first: dict[int, str] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    names = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    for value in list(graph.graph.initializers.values()):
        name = value.name or ""
        short = name.removeprefix(_PREFIX)
        wanted = names.get(short, short)
        if short != name and wanted not in graph.graph.initializers:
            value.name = wanted


def io_names(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Name the graph's inputs and outputs; inner values of these names get others.

    Returns:
        Initializers that have another name now, as a parameter that is called like an argument of
        the forward: name -> name.
    """
    graph = model.graph
    assert len(graph.inputs) == len(inputs)
    assert len(graph.outputs) == len(outputs)
    ports: list[ir.Value] = [*graph.inputs, *graph.outputs]
    wanted = {*inputs, *outputs}
    values: list[Any] = [*graph.initializers.values(), *ports]
    values += [v for node in ir.traversal.RecursiveGraphIterator(graph) for v in node.outputs]
    renamed = {}
    for value in values:
        if value.name in wanted:
            name = f"{value.name}_inner"
            if value.is_initializer():
                renamed[str(value.name)] = name
            value.name = name
    for value, name in zip(ports, (*inputs, *outputs), strict=True):
        value.name = name
    return renamed
