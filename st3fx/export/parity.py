"""Runs an ONNX file beside the model that it was made from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor

from st3fx.errors import ExportError
from st3fx.export.batch import random_like, repeated
from st3fx.export.call import Call, Flat
from st3fx.export.quiet import quiet
from st3fx.export.result import Parity
from st3fx.messages import describe

TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative difference by the type of the weights; all others: :data:`TOLERANCE`."""

TOLERANCE = 1e-4

_SILENT = 4


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

    Raises:
        ExportError: When ONNX Runtime refuses the file or computes something else.
    """
    session = _session(path)
    generator = torch.Generator().manual_seed(seed)
    own = next((t.shape[0] for t, has in zip(call.tensors, batched, strict=True) if has), 1)
    rows = [_compare(session, flat, call.tensors, outputs, "given", own, tolerance)]
    for batch in batch_sizes or (own,):
        with _random_call(flat, call.tensors, batched, batch, generator) as tensors:
            rows.append(_compare(session, flat, tensors, outputs, "random", batch, tolerance))
    return tuple(rows)


@contextlib.contextmanager
def _random_call(
    flat: Flat,
    tensors: Sequence[Tensor],
    batched: Sequence[bool],
    batch: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, ...]]:
    """Random values, or the example's samples where the model refuses random ones."""
    values = random_like(tensors, batched, batch, generator)
    try:
        with quiet():
            flat(*values)
    except Exception:  # noqa: BLE001 (whatever the model says about values that mean something)
        values = repeated(tensors, batched, batch)
    yield values


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime refuses the model: {_first(error)}") from error


def _compare(
    session: Any,
    flat: Flat,
    tensors: Sequence[Tensor],
    names: Sequence[str],
    inputs: str,
    batch: int,
    tolerance: float,
) -> Parity:
    wanted = _run_torch(flat, tensors, batch)
    given = _run_onnx(session, tensors, batch)
    largest = (0.0, 0.0)
    for name, left, right in zip(names, wanted, given, strict=True):
        absolute, relative = difference(_array(left), right)
        where = f"at batch {batch}, {inputs} inputs"
        if not relative <= tolerance:
            raise ExportError(
                f"ONNX Runtime and PyTorch differ in {name} {where}: "
                + (
                    f"{relative:.2g} relative, {absolute:.2g} absolute; {tolerance:.2g} relative "
                    "is allowed (--tolerance)"
                    if np.isfinite(relative)
                    else f"shape {right.shape} and type {right.dtype} against "
                    f"{tuple(left.shape)} and {_array(left).dtype}, or infinite values"
                )
                + "; a forward that branches on the batch size is exported for one branch alone"
            )
        largest = max(largest[0], absolute), max(largest[1], relative)
    return Parity(inputs, batch, *largest)


def difference(wanted: npt.NDArray[Any], given: npt.NDArray[Any]) -> tuple[float, float]:
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
def _run_torch(flat: Flat, tensors: Sequence[Tensor], batch: int) -> tuple[Tensor, ...]:
    try:
        with quiet():
            result: tuple[Tensor, ...] = flat(*tensors)
    except Exception as error:
        raise ExportError(
            f"the model itself fails at batch {batch} ({describe(error)}): give --batch-sizes that "
            "it takes, or --fixed-batch"
        ) from error
    return result


def _run_onnx(session: Any, tensors: Sequence[Tensor], batch: int) -> list[npt.NDArray[Any]]:
    try:
        feeds = {
            port.name: _array(tensor)
            for port, tensor in zip(session.get_inputs(), tensors, strict=True)
        }
        result: list[npt.NDArray[Any]] = session.run(None, feeds)
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime fails at batch {batch}: {_first(error)}; where the model is made for "
            "one batch size, export it with --fixed-batch"
        ) from error
    return result


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    array: npt.NDArray[Any] = (
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    ).numpy()
    return array


def _first(error: BaseException) -> str:
    """The first line of a message, with what ONNX Runtime puts before it taken off."""
    return describe(error).partition(": ")[2].removeprefix("[ONNXRuntimeError] : ") or "no reason"
