"""Makes a smaller graph without dead channels of a model, checks it and writes it.

The graph is compared with the model on the example, and saved by ``torch.export``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ShapesCollection
from torch.utils._pytree import tree_leaves

from st3fx.errors import ExportError
from st3fx.export.batch import Dim, batch_size, dimension, repeated
from st3fx.export.call import Call, outputs
from st3fx.export.capture import quiet, refusal
from st3fx.export.parity import TOLERANCE, TOLERANCES, difference
from st3fx.files.atomic import replace_file
from st3fx.files.compact import positive_zeros
from st3fx.modules.state import preserved, preserved_rng
from st3fx.passes.channels.channel_report import ChannelReport
from st3fx.passes.channels.eliminate import eliminate


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


def check_reduced(model: nn.Module, graph: nn.Module, call: Call, *, strict: bool = True) -> None:
    """Compare a graph with the model that it was made from, on the example.

    Args:
        model: In eval mode.
        graph: Called as the model is.
        call: The example.
        strict: Compare integers too, which a rounding may change, and models that draw random
            numbers; of both, shapes and types are compared in any case.

    Raises:
        ExportError: When an output differs by more than an export tolerates.
    """
    allowed = max(
        (TOLERANCES.get(parameter.dtype, TOLERANCE) for parameter in model.parameters()),
        default=TOLERANCE,
    )
    wanted, given = _run(model, call), _run(graph, call)
    for (name, left), (_, right) in zip(wanted, given, strict=True):
        if left.shape != right.shape or left.dtype != right.dtype:
            raise ExportError(
                f"without its dead channels the model gives {_described(right)} as {name} instead "
                f"of {_described(left)}: leave them in, and report it with the model"
            )
        if not strict and not (left.is_floating_point() or left.is_complex()):
            continue
        relative = _difference(left, right)
        if not relative <= allowed and (strict or not _is_random(model, call, wanted)):
            raise ExportError(
                f"without its dead channels the model gives another {name}: {relative:.2g} "
                f"relative, where {allowed:.2g} is allowed; random numbers in eval mode, or "
                "activations that are not finite, are the usual reasons"
            )


def _run(module: nn.Module, call: Call) -> list[tuple[str, Tensor]]:
    args, kwargs = call.arguments([tensor.clone() for tensor in call.tensors])
    with preserved(module):
        result = module(*args, **kwargs)
    try:
        return list(outputs(result))
    except ExportError:  # containers that pytree alone knows
        return [("an output", leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _difference(wanted: Tensor, given: Tensor) -> float:
    pair = []
    for tensor in (wanted.detach().cpu(), given.detach().cpu()):
        real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        pair.append((real.float() if real.dtype == torch.bfloat16 else real).numpy())
    return difference(*pair)[1]


def _is_random(model: nn.Module, call: Call, wanted: list[tuple[str, Tensor]]) -> bool:
    with preserved_rng():
        torch.rand(())  # the generator as it was would give the same numbers again
        again = _run(model, call)
    return any(_difference(a, b) > 0 for (_, a), (_, b) in zip(wanted, again, strict=True))


def _described(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a number"
    return f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"


def write_reduced(graph: nn.Module, call: Call, batched: Sequence[Dim], path: Path) -> None:
    """Save a graph so that ``torch.export.load(path).module()`` gives it back, without st3fx.

    Zeros of either sign are +0.0 in the file.

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
        for name, tensor in program.state_dict.items():
            clean = positive_zeros(tensor)
            if clean is not tensor:  # the model's own stays as it is
                is_parameter = isinstance(tensor, nn.Parameter)
                program.state_dict[name] = nn.Parameter(clean) if is_parameter else clean
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda file: torch.export.save(program, file))
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
