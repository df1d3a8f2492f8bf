"""Exports one model: capture, passes, file, checks; the file appears when all of it held."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from st3fx.errors import ExportError, describe
from st3fx.export.export_result import ExportResult, Port, Size
from st3fx.export.job import Job, PreparedGraph
from st3fx.export.settings import Settings
from st3fx.export.sparse import check_library, write_sparse
from st3fx.export.weights import size_of_files
from st3fx.export.write import data_path, weights_beside, write_model
from st3fx.export.zeros import check_zeros
from st3fx.files.atomic import followed, move_into_place, temporary_neighbour
from st3fx.modules.state import preserved, to_eval
from st3fx.plan.example import Example
from st3fx.runtime.operators import plain_path


def export(
    model: nn.Module,
    example: Example,
    path: Path,
    settings: Settings,
    *,
    before: Callable[[], Size],
    progress: Callable[[str], None],
) -> ExportResult:
    """Write a plain model, on the CPU, as an ONNX file.

    Args:
        model: Left as it was.
        example: One call in eval mode.
        path: The file; one that is there is replaced, with its weights beside it. With sparse
            kernels it has those, and the plain file is ``plain_path(path)``.
        settings: What the file is to be, and how it is checked.
        before: Measures the weights as they were, when the file is there.
        progress: Called with the name of each stage as it begins.

    Raises:
        InputError: When the model refuses the example.
        ExportError: When it cannot be exported, or a check fails. Nothing is left then.
    """
    began = time.perf_counter()
    if settings.sparse_kernels:
        check_library(verify=settings.verify)
    with preserved(model), torch.no_grad():
        to_eval(model)
        job = Job(model, example, settings)
        progress("capture")
        channels = job.reduce() if settings.is_reduced else None
        made = job.graph()
        try:
            result = _write(job, made, path, before, progress)
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return dataclasses.replace(result, channels=channels, seconds=time.perf_counter() - began)


def _write(
    job: Job,
    made: PreparedGraph,
    path: Path,
    before: Callable[[], Size],
    progress: Callable[[str], None],
) -> ExportResult:
    """Write a graph and what is made of it beside the target, check it there, and move it."""
    graph, norms, settings = made.graph, made.norms, job.settings
    inputs, outputs = (tuple(map(_port, v)) for v in (graph.graph.inputs, graph.graph.outputs))
    path = followed(path)
    plain, kernels = plain_path(path) if settings.sparse_kernels else path, None
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_neighbour(path) as folder:
        progress("save")
        part = folder / plain.name
        sparse = _write_checked(graph, part, settings, progress)
        zeros = check_zeros(part, job.written, made.parameters, norms.biases, made.renamed)
        progress("compare")
        rows = job.compare(part)
        if settings.sparse_kernels:
            kernels = write_sparse(graph, folder / path.name, part, job, progress)
        progress("measure")
        files = sorted(folder.iterdir())
        targets = tuple(dict.fromkeys((plain, path)))
        sizes = (before(), *_file_sizes(files, targets))
        written = _put_in_place(folder, files, targets)
    return ExportResult(
        path=path,
        files=written,
        opset=graph.opset_imports[""],
        inputs=inputs,
        outputs=outputs,
        dynamic_batch=job.is_free,
        baked=job.call.baked,
        batch_norms=len(norms.changed),
        batch_norms_kept=norms.kept,
        zeros=zeros,
        sparse_initializers=sparse,
        parity=rows,
        tolerance=job.tolerance,
        sizes=sizes,
        seconds=0.0,
        sparse=kernels and dataclasses.replace(kernels, path=path),
        plain=plain if kernels else None,
    )


def _write_checked(
    graph: ir.Model, path: Path, settings: Settings, progress: Callable[[str], None]
) -> int:
    """Write a graph and check the file; how many initializers are sparse.

    The checker's inference of shapes does not know sparse initializers: it sees them dense.
    """
    write_model(graph, path)
    progress("check")
    _check(path, full=True)
    if not settings.sparse_initializers:
        return 0
    for file in path.parent.iterdir():
        file.unlink()
    count = write_model(graph, path, sparse=True)
    _check(path, full=False)
    return count


def _check(path: Path, *, full: bool) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=full)
    except Exception as error:
        raise ExportError(f"onnx.checker refuses the model: {describe(error)}") from error


def _file_sizes(files: Sequence[Path], targets: Sequence[Path]) -> list[Size]:
    """Measure each target, with the weights beside it."""
    names = [(target.name, data_path(target).name) for target in targets]
    return [size_of_files(pair[0], [f for f in files if f.name in pair]) for pair in names]


def _put_in_place(
    written: Path, files: Sequence[Path], targets: Sequence[Path]
) -> tuple[Path, ...]:
    """Move what was written to its place; what lay there goes, with the weights beside it.

    No file is ever beside the weights of another: where there are such, the old file goes before
    them, and the new one comes after.
    """
    folder, names = targets[0].parent, {target.name for target in targets}
    old = [data for target in targets for data in weights_beside(target)]
    before = (*targets, *old) if old or any(file.name not in names for file in files) else ()
    moved = sorted((file.name for file in files), key=lambda name: name in names)
    move_into_place(written, moved, before)
    return tuple(sorted(folder / file.name for file in files))


def _port(value: ir.Value) -> Port:
    shape = value.shape or ()
    sizes = tuple(size if isinstance(size, int) else str(size) for size in shape)
    return Port(str(value.name), value.dtype.name if value.dtype else "?", sizes)
