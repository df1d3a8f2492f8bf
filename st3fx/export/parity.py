"""Runs an ONNX file beside the model that it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from st3fx.core.messages import describe
from st3fx.core.state import preserved
from st3fx.errors import ExportError
from st3fx.export.batch import random_like, repeated
from st3fx.export.call import Call, Flat
from st3fx.export.quiet import quiet
from st3fx.export.result import Parity

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference by the type of the weights; all others: :data:`TOLERANCE`."""

TOLERANCE = 1e-4

_SILENT = 4

Array = npt.NDArray[Any]

Opener = Callable[[Path], Any]
"""Opens a file as a session of ONNX Runtime."""


def verify(
    path: Path,
    flat: Flat,
    call: Call,
    batched: Sequence[bool],
    outputs: Sequence[str],
    *,
    batch_sizes: Sequence[int],
    tolerance: float,
    seed: int,
    session: Opener | None = None,
) -> tuple[Parity, ...]:
    """Compare ONNX Runtime with PyTorch on the example and on random values.

    Args:
        path: The ONNX file.
        flat: The model, in eval mode.
        call: The example.
        batched: Which of its tensors have the batch as dimension 0.
        outputs: Names.
        batch_sizes: For the random values; empty: the example's.
        tolerance: Largest relative difference that passes.
        seed: Of the random values.
        session: Opens the file; :func:`open_plain` by default.

    Raises:
        ExportError: When ONNX Runtime refuses the file or computes something else.
    """
    running = (session or open_plain)(path)
    generator = torch.Generator().manual_seed(seed)
    own = next((t.shape[0] for t, has in zip(call.tensors, batched, strict=True) if has), 1)
    wanted = _run_torch(flat, call.tensors, own)
    answers = [wanted]
    rows = [_compare(running, flat, call.tensors, wanted, outputs, "given", own, tolerance)]
    for batch in batch_sizes or (own,):
        inputs, tensors = "random", random_like(call.tensors, batched, batch, generator)
        try:
            wanted = _run_torch(flat, tensors, batch)
        except ExportError:
            # Values that mean something, as offsets do: the example's samples are taken instead.
            inputs, tensors = "repeated", repeated(call.tensors, batched, batch)
            wanted = _run_torch(flat, tensors, batch)
        answers.append(wanted)
        rows.append(_compare(running, flat, tensors, wanted, outputs, inputs, batch, tolerance))
    return tuple(dataclasses.replace(row, constant=is_constant(answers)) for row in rows)


def is_constant(answers: Sequence[Sequence[Array]]) -> bool:
    """Whether no output depends on the inputs, as far as several calls tell.

    Args:
        answers: The outputs of each call; those with a batch have it as dimension 0.
    """
    return len(answers) > 1 and all(
        _repeats(first, other)
        for answer in answers
        for first, other in zip(answers[0], answer, strict=True)
    )


def _repeats(first: Array, other: Array) -> bool:
    """Whether ``other`` is ``first``, or its first sample again and again."""
    if np.array_equal(first, other) or not first.ndim:
        return np.array_equal(first, other)
    sample = first[:1]
    same_shape = sample.shape[1:] == other.shape[1:]
    return same_shape and np.array_equal(np.broadcast_to(sample, other.shape), other)


def providers() -> tuple[str, ...]:
    """The execution providers of the ONNX Runtime that is installed."""
    return tuple(onnxruntime.get_available_providers())


def compare(
    session: Any,
    flat: Flat,
    tensors: Sequence[Tensor],
    outputs: Sequence[str],
    inputs: str,
    *,
    tolerance: float,
) -> Parity:
    """Compare a session with PyTorch on these tensors; ``inputs`` says which they are.

    Raises:
        ExportError: When either of them fails, or they differ.
    """
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1)
    wanted = _run_torch(flat, tensors, batch)
    return _compare(session, flat, tensors, wanted, outputs, inputs, batch, tolerance)


def takes(flat: Flat, tensors: Sequence[Tensor]) -> bool:
    """Whether the model runs with these tensors."""
    try:
        _run_torch(flat, tensors, 1)
    except ExportError:
        return False
    return True


def open_plain(path: Path) -> Any:
    """A session of ONNX Runtime as it is.

    Raises:
        ExportError: When it refuses the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime refuses the model: {_first(error)}; --no-verify writes it all the same"
        ) from error


def _compare(
    session: Any,
    flat: Flat,
    tensors: Sequence[Tensor],
    wanted: Sequence[Array],
    names: Sequence[str],
    inputs: str,
    batch: int,
    tolerance: float,
) -> Parity:
    given = _run_onnx(session, tensors, batch)
    if len(wanted) != len(given):
        raise ExportError(
            f"the model returns {len(wanted)} tensors at batch {batch}, and {len(given)} at that "
            "of the example: export it with a fixed batch (--fixed-batch)"
        )
    largest = (0.0, 0.0)
    for name, left, right in zip(names, wanted, given, strict=True):
        absolute, relative = difference(left, right)
        if not relative <= tolerance:
            torch.rand(())  # the generator as it was would give the same numbers again
            again = _run_torch(flat, tensors, batch)
            random = any(difference(*pair)[0] for pair in zip(wanted, again, strict=True))
            raise ExportError(
                f"ONNX Runtime and PyTorch differ in {name} at batch {batch}, {inputs} inputs: "
                f"{_misfit(left, right, tolerance)}{_hint(inputs, random=random)}"
            )
        largest = max(largest[0], absolute), max(largest[1], relative)
    return Parity(inputs, batch, *largest)


def _misfit(wanted: Array, given: Array, tolerance: float) -> str:
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return f"{_described(given)} instead of {_described(wanted)}"
    absolute, relative = difference(wanted, given)
    if np.isfinite(relative):
        return (
            f"{relative:.2g} relative, {absolute:.2g} absolute, where {tolerance:.2g} relative is "
            "allowed (--tolerance)"
        )
    if wanted.dtype.kind not in "iub":
        return "values that are not finite"
    return "other integers (of values that are equal, the two may find another one first)"


def _described(array: Array) -> str:
    return f"{'x'.join(map(str, array.shape)) or 'scalar'} {array.dtype}"


def _hint(inputs: str, *, random: bool) -> str:
    if random:
        return "; the model draws random numbers in eval mode: leave this check out by --no-verify"
    if inputs != "given":
        return "; a forward that branches on sizes or values is exported for the example's branch"
    return ""


def difference(wanted: Array, given: Array) -> tuple[float, float]:
    """Largest absolute difference, and that over the largest magnitude in ``wanted``.

    Infinite where shapes, types, or the places of NaN and infinities differ.
    """
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return np.inf, np.inf
    if not wanted.size:
        return 0.0, 0.0
    left, right = wanted.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return np.inf, np.inf
    if not np.isfinite(right[finite]).all():
        return np.inf, np.inf
    if not finite.any():
        return 0.0, 0.0
    absolute = float(np.abs(left[finite] - right[finite]).max())
    scale = float(np.abs(left[finite]).max())
    if not absolute:
        return 0.0, 0.0
    # A wrong integer is wrong, however large the others are.
    exact = wanted.dtype.kind in "iub"
    return absolute, np.inf if exact or not scale else absolute / scale


@torch.no_grad()
def _run_torch(flat: Flat, tensors: Sequence[Tensor], batch: int) -> list[Array]:
    try:
        # What it writes into inputs or buffers must not reach the next call.
        with quiet(), preserved(flat):
            return [_array(tensor) for tensor in flat(*(tensor.clone() for tensor in tensors))]
    except Exception as error:
        raise ExportError(
            f"the model itself fails at batch {batch} ({describe(error)}): give --batch-sizes that "
            "it takes, or --fixed-batch"
        ) from error


def _run_onnx(session: Any, tensors: Sequence[Tensor], batch: int) -> list[Array]:
    try:
        feeds = {
            port.name: _array(tensor)
            for port, tensor in zip(session.get_inputs(), tensors, strict=True)
        }
        result: list[Array] = session.run(None, feeds)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime fails at batch {batch}: {_first(error)}; where the model is made for "
            "one batch size, export it with --fixed-batch"
        ) from error
    return result


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    ).numpy()
    return array


def _first(error: BaseException) -> str:
    """The first line of a message, with what ONNX Runtime puts before it taken off."""
    return describe(error).partition(": ")[2].removeprefix("[ONNXRuntimeError] : ") or "no reason"
