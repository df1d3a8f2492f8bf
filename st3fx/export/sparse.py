"""Lowers a graph that was written plain, and writes a file of it that is checked as that was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from st3fx import runtime
from st3fx.errors import ExportError, NativeError, describe
from st3fx.export import parity
from st3fx.export.export_result import Parity, SparseFile
from st3fx.export.job import Job
from st3fx.export.parity import Criteria
from st3fx.export.rounding import Rounding
from st3fx.export.write import write_model
from st3fx.passes.onnx.sparse_kernels.free_sizes import FreeSizes
from st3fx.passes.onnx.sparse_kernels.lower import SparseKernels
from st3fx.runtime.calibration import load_calibration

TOLERANCE = 1e-5
"""Largest relative difference of a float32 model."""

_SILENT = 4


def check_library(*, verify: bool) -> None:
    """Fail early where the file could not be compared.

    Raises:
        ExportError: The kernel library is missing, or not for this machine.
    """
    if not verify:
        return
    try:
        runtime.library()
    except NativeError as error:
        raise ExportError(
            f"--sparse-kernels: {error}. Without --sparse-kernels the plain ONNX file is written "
            "alone, which runs everywhere; --no-verify writes both without running them"
        ) from error


def write_sparse(
    graph: ir.Model, path: Path, plain: Path, job: Job, progress: Callable[[str], None]
) -> SparseFile:
    """Lower a graph, write it and compare it with the model.

    The height and width of images are left open where the graph computes the same as the model at
    a size that the export had not seen.

    Args:
        graph: That was written; it is changed.
        path: The file to write.
        plain: The file that holds the graph as it was given.
        job: The model with its example.
        progress: Called with the name of each stage as it begins.

    Raises:
        ExportError: When the file is refused, or computes something else.
    """
    progress("lower")
    kernels = SparseKernels(load_calibration()).applied_to(graph).report
    _write(graph, path)
    tolerance = _tolerance(job)
    opened: tuple[str, ...] = ()
    rows: tuple[Parity, ...] = ()
    progress("compare")
    rounding = Rounding(job.flat, job.call, plain, tolerance, job.tolerance)
    # A tolerance that was asked for is what was asked for.
    bounds = None if job.settings.tolerance else rounding

    def compare() -> tuple[Parity, ...]:
        return job.compare(path, session=_session, tolerance=tolerance, bounds=bounds)

    if job.settings.verify:
        criteria = Criteria(job.outputs, tolerance, bounds)
        opened, unseen = _open(graph, path, plain, job, criteria, compare)
        rows = (*compare(), *unseen)
    return SparseFile(path, kernels, opened, rows, rounding.widest)


def _write(graph: ir.Model, path: Path) -> None:
    """Write and check. Operators of a domain that is not its own the checker lets pass."""
    write_model(graph, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the sparse graph: {describe(error)}") from error


def _tolerance(job: Job) -> float:
    """Half-precision models have no sparse kernels: theirs stays what it is."""
    is_single = job.tolerance == parity.TOLERANCE
    return job.settings.tolerance or (TOLERANCE if is_single else job.tolerance)


def _open(
    graph: ir.Model,
    path: Path,
    plain: Path,
    job: Job,
    criteria: Criteria,
    compare: Callable[[], tuple[Parity, ...]],
) -> tuple[tuple[str, ...], tuple[Parity, ...]]:
    """Leave the size of images open in the file, where that holds; which inputs, and the proof."""
    opened = tuple(FreeSizes().applied_to(graph).changed)
    tensors = [
        _other_size(tensor) if name in opened else tensor
        for name, tensor in zip(job.call.names, job.call.tensors, strict=True)
    ]
    if not opened or not parity.takes(job.flat, tensors):
        return (), ()
    trial = path.with_name(f"open.{path.name}")
    label = f"given, {_sizes(tensors)}"
    try:
        _write(graph, trial)
        row = parity.compare(_session(trial), job.flat, tensors, criteria, label)
    except ExportError:
        if not _plain_is_open(plain, job, tensors):
            return (), ()  # the exporter built the size in: nothing of ours
        compare()  # of what differs at the example's size too, it is known in which layer
        raise
    else:
        _write(graph, path)
        return opened, (row,)
    finally:
        for file in trial.parent.glob(f"{trial.name}*"):
            file.unlink()


def _plain_is_open(plain: Path, job: Job, tensors: Sequence[Tensor]) -> bool:
    """Whether the plain graph, with its sizes open, computes the same as the model."""
    graph = ir.load(plain)
    FreeSizes()(graph)
    trial = plain.with_name(f"open.{plain.name}")
    try:
        write_model(graph, trial)
        with contextlib.suppress(ExportError):
            session = parity.open_plain(trial)
            criteria = Criteria(job.outputs, job.tolerance)
            parity.compare(session, job.flat, tensors, criteria, "other size")
            return True
        return False
    finally:
        for file in trial.parent.glob(f"{trial.name}*"):
            file.unlink()


def _other_size(tensor: Tensor) -> Tensor:
    """Enlarge images to a size that is not square and no multiple of anything."""
    height, width = tensor.shape[2:]
    size = (height + height // 8 + 1, width + width // 16 + 2)
    return torch.nn.functional.interpolate(tensor, size=size, mode="nearest")


def _sizes(tensors: Sequence[Tensor]) -> str:
    """``253x240``, of the images among the inputs."""
    sizes = (f"{t.shape[2]}x{t.shape[3]}" for t in tensors if t.dim() == 4)
    return ", ".join(dict.fromkeys(sizes))


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        return runtime.session(path, torch.get_num_threads(), options=options)
    except NativeError as error:
        raise ExportError(f"ONNX Runtime refuses the sparse graph: {error}") from error
