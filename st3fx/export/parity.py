"""Runs an ONNX file beside the model that it was made from, and says how far they are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from st3fx.errors import ExportError, describe
from st3fx.export.batch import Dim, batch_size, random_like, repeated
from st3fx.export.call import Call, Flat
from st3fx.export.capture import quiet
from st3fx.export.export_result import Parity
from st3fx.modules.state import preserved

Array = npt.NDArray[Any]


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


def as_array(tensor: Tensor) -> Array:
    """The values of a tensor, as ONNX Runtime takes them.

    Raises:
        ExportError: For a type that it does not take from Python.
    """
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        raise ExportError(
            "ONNX Runtime takes and gives no bfloat16 in Python: let the forward take and return "
            "float32, or leave the comparison out by --no-verify"
        )
    array: Array = (
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    ).numpy()
    return array


TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference by the type of the weights; all others: :data:`TOLERANCE`."""

TOLERANCE = 1e-4

_SILENT = 4

Opener = Callable[[Path], Any]
"""Opens a file as a session of ONNX Runtime."""


@dataclass(frozen=True)
class Bound:
    """What an output may be where rounding alone makes it differ.

    Attributes:
        exact: The output in float64.
        allowed: Largest relative difference from it that passes.
    """

    exact: Array
    allowed: float


@dataclass(frozen=True)
class Criteria:
    """What a comparison goes by.

    Attributes:
        outputs: Names.
        tolerance: Largest relative difference from PyTorch that passes.
        bounds: Called with inputs for which an output differs by more: what each may be all the
            same; ``None``: nothing.
        explain: Called with inputs for which an output differs: where it begins.
    """

    outputs: Sequence[str]
    tolerance: float
    bounds: Callable[[Sequence[Tensor]], Sequence[Bound]] | None = None
    explain: Callable[[Sequence[Tensor]], str] | None = None


def verify(
    path: Path,
    flat: Flat,
    call: Call,
    batched: Sequence[Dim],
    criteria: Criteria,
    *,
    batch_sizes: Sequence[int],
    seed: int,
    session: Opener | None = None,
) -> tuple[Parity, ...]:
    """Compare ONNX Runtime with PyTorch on the example and on random values.

    Args:
        path: The ONNX file.
        flat: The model, in eval mode.
        call: The example.
        batched: Which dimension of its tensors is the batch.
        criteria: What passes.
        batch_sizes: For the random values; empty: the example's.
        seed: Of the random values.
        session: Opens the file; :func:`open_plain` by default.

    Raises:
        ExportError: When ONNX Runtime refuses the file or computes something else.
    """
    running = (session or open_plain)(path)
    generator = torch.Generator().manual_seed(seed)
    own = batch_size(call.tensors, batched) or 1
    wanted = run_torch(flat, call.tensors, own)
    answers = [wanted]
    rows = [_compare(running, flat, call.tensors, wanted, criteria, "given", own)]
    for batch in batch_sizes or (own,):
        inputs, tensors = "random", random_like(call.tensors, batched, batch, generator)
        try:
            wanted = run_torch(flat, tensors, batch)
        except ExportError:
            # Values that mean something, as offsets do: the example's samples are taken instead.
            inputs, tensors = "repeated", repeated(call.tensors, batched, batch)
            wanted = run_torch(flat, tensors, batch)
        answers.append(wanted)
        rows.append(_compare(running, flat, tensors, wanted, criteria, inputs, batch))
    return tuple(dataclasses.replace(row, constant=is_constant(answers)) for row in rows)


def is_constant(answers: Sequence[Sequence[Array]]) -> bool:
    """Whether no output depends on the inputs, as far as several calls tell.

    Args:
        answers: The outputs of each call.
    """
    return len(answers) > 1 and all(
        _repeats(first, other)
        for answer in answers
        for first, other in zip(answers[0], answer, strict=True)
    )


def _repeats(first: Array, other: Array) -> bool:
    """Whether ``other`` is ``first``, or its first sample again and again."""
    if first.ndim != other.ndim or first.dtype != other.dtype or not first.size:
        return np.array_equal(first, other)
    # Dimensions of the same size may be the batch's too: two calls of one batch are compared.
    pairs = zip(first.shape, other.shape, strict=True)
    sample = first[tuple(slice(None) if a == b else slice(1) for a, b in pairs)]
    return np.array_equal(np.broadcast_to(sample, other.shape), other)


def providers() -> tuple[str, ...]:
    """The execution providers of the ONNX Runtime that is installed."""
    return tuple(onnxruntime.get_available_providers())


def compare(
    session: Any,
    flat: Flat,
    tensors: Sequence[Tensor],
    criteria: Criteria,
    inputs: str,
) -> Parity:
    """Compare a session with PyTorch on these tensors; ``inputs`` says which they are.

    Raises:
        ExportError: When either of them fails, or they differ.
    """
    batch = next((tensor.shape[0] for tensor in tensors if tensor.dim()), 1)
    wanted = run_torch(flat, tensors, batch)
    return _compare(session, flat, tensors, wanted, criteria, inputs, batch)


def takes(flat: Flat, tensors: Sequence[Tensor]) -> bool:
    """Whether the model runs with these tensors."""
    try:
        run_torch(flat, tensors, 1)
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
            f"ONNX Runtime refuses the model: {_first(error)}{_advice(path, error)}"
        ) from error


def _advice(path: Path, error: Exception) -> str:
    """What to do about a file that ONNX Runtime refuses."""
    kinds = {item.data_type for item in onnx.load(path, load_external_data=False).graph.initializer}
    narrow = onnx.TensorProto.BFLOAT16 in kinds and "NOT_IMPLEMENTED" in str(error)
    why = "; it has few operators for bfloat16: export the model as float32" if narrow else ""
    return f"{why}; --no-verify writes it all the same"


def _compare(
    session: Any,
    flat: Flat,
    tensors: Sequence[Tensor],
    wanted: Sequence[Array],
    criteria: Criteria,
    inputs: str,
    batch: int,
) -> Parity:
    given = run_onnx(session, tensors, batch)
    if len(wanted) != len(given):
        raise ExportError(
            f"the model returns {len(wanted)} tensors at batch {batch}, and {len(given)} at that "
            "of the example: export it with a fixed batch (--fixed-batch)"
        )
    largest = (0.0, 0.0)
    bounds: Sequence[Bound] = ()
    for index, (name, left, right) in enumerate(zip(criteria.outputs, wanted, given, strict=True)):
        absolute, relative = difference(left, right)
        if not relative <= criteria.tolerance:
            bounds = bounds or (criteria.bounds(tensors) if criteria.bounds is not None else ())
            if bounds and _is_rounding(bounds[index], left, right):
                relative = difference(bounds[index].exact, right.astype(np.float64))[1]
            else:
                reason = _reason(flat, tensors, wanted, (left, right), criteria, inputs, batch)
                raise ExportError(
                    f"ONNX Runtime and PyTorch differ in {name} at batch {batch}, {inputs} "
                    f"inputs: {reason}"
                )
        largest = max(largest[0], absolute), max(largest[1], relative)
    return Parity(inputs, batch, *largest)


def _is_rounding(bound: Bound, wanted: Array, given: Array) -> bool:
    """Whether an output differs by no more than rounding explains."""
    if wanted.dtype != given.dtype or wanted.dtype.kind != "f":
        return False
    return difference(bound.exact, given.astype(np.float64))[1] <= bound.allowed


def _reason(
    flat: Flat,
    tensors: Sequence[Tensor],
    wanted: Sequence[Array],
    pair: tuple[Array, Array],
    criteria: Criteria,
    inputs: str,
    batch: int,
) -> str:
    """Say by how much an output differs, from which layer on, and what that may come from."""
    torch.rand(())  # the generator as it was would give the same numbers again
    again = run_torch(flat, tensors, batch)
    text = _misfit(*pair, criteria.tolerance)
    if any(difference(*both)[0] for both in zip(wanted, again, strict=True)):
        return (
            f"{text}; the model draws random numbers in eval mode: leave this check out by "
            "--no-verify"
        )
    layer = criteria.explain(tensors) if criteria.explain is not None else ""
    if layer:
        return f"{text}; the first layer that differs is {layer}"
    if inputs != "given":
        text += "; a forward that branches on sizes or values is exported for the example's branch"
    return text


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


@torch.no_grad()
def run_torch(flat: Flat, tensors: Sequence[Tensor], batch: int = 1) -> list[Array]:
    """The outputs of a model.

    Raises:
        ExportError: When it fails.
    """
    try:
        # What it writes into inputs or buffers must not reach the next call.
        with quiet(), preserved(flat):
            return [as_array(tensor) for tensor in flat(*(tensor.clone() for tensor in tensors))]
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model itself fails at batch {batch} ({describe(error)}): give --batch-sizes that "
            "it takes, or --fixed-batch"
        ) from error


def run_onnx(session: Any, tensors: Sequence[Tensor], batch: int = 1) -> list[Array]:
    """The outputs of a session.

    Raises:
        ExportError: When it fails.
    """
    try:
        feeds = {
            port.name: as_array(tensor)
            for port, tensor in zip(session.get_inputs(), tensors, strict=True)
        }
        result: list[Array] = session.run(None, feeds)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime fails at batch {batch}: {_first(error)}; where the model is made for "
            "one batch size, export it with --fixed-batch; where the batch is another dimension of "
            "an input than the first, say so (--free INPUT:DIM=batch)"
        ) from error
    return result


def _first(error: BaseException) -> str:
    """The first line of a message, with what ONNX Runtime puts before it taken off."""
    return describe(error).partition(": ")[2].removeprefix("[ONNXRuntimeError] : ") or "no reason"
