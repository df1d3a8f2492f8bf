"""A graph without dead channels as a file: checked against the model, saved by ``torch.export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from st3fx.core.state import preserved, preserved_rng
from st3fx.errors import ExportError
from st3fx.export.batch import Dim
from st3fx.export.call import Call, outputs
from st3fx.export.difference import difference
from st3fx.export.parity import TOLERANCE, TOLERANCES
from st3fx.export.quiet import quiet
from st3fx.export.reduce import captured, samples
from st3fx.files.atomic import replace_file
from st3fx.files.positive_zeros import positive_zeros


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
