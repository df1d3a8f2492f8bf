"""A graph without dead channels as a file: checked against the model, saved by ``torch.export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from st3fx.errors import ExportError
from st3fx.export.batch import Dim
from st3fx.export.call import Call, outputs
from st3fx.export.parity import TOLERANCE, TOLERANCES, difference
from st3fx.export.quiet import quiet
from st3fx.export.reduce import captured, samples
from st3fx.files.atomic import replace_file


def check_reduced(model: nn.Module, graph: nn.Module, call: Call) -> None:
    """Compare a graph with the model that it was made from, on the example.

    Args:
        model: In eval mode.
        graph: Called as the model is.
        call: The example.

    Raises:
        ExportError: When an output differs by more than an export tolerates.
    """
    allowed = max(
        (TOLERANCES.get(parameter.dtype, TOLERANCE) for parameter in model.parameters()),
        default=TOLERANCE,
    )
    results = []
    for module in (model, graph):
        args, kwargs = call.arguments([tensor.clone() for tensor in call.tensors])
        results.append(list(outputs(module(*args, **kwargs))))
    for (name, wanted), (_, given) in zip(*results, strict=True):
        _, relative = difference(wanted.numpy(), given.numpy())
        if not relative <= allowed:
            raise ExportError(
                f"without its dead channels the model gives another {name}: {relative:.2g} "
                f"relative, where {allowed:.2g} is allowed; random numbers in eval mode, or "
                "activations that are not finite, are the usual reasons"
            )


def write_reduced(graph: nn.Module, call: Call, batched: Sequence[Dim], path: Path) -> None:
    """Save a graph so that ``torch.export.load(path).module()`` gives it back, without st3fx.

    Args:
        graph: Of plain operators.
        call: The example.
        batched: Which dimension of its tensors is the batch, which stays free.
        path: The file; one that is there is replaced, whole or not at all.

    Raises:
        ExportError: When it cannot be written.
    """
    with quiet():
        program = captured(graph, call, samples(call, batched), batched)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda file: torch.export.save(program, file))
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
