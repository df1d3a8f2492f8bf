"""Exports one model: capture, passes, file, checks; the file appears when all of it held."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from st3fx.atomic import temporary_neighbour
from st3fx.errors import ExportError, InputError
from st3fx.export import parity
from st3fx.export.batch import batched
from st3fx.export.call import Call, Flat, outputs, unique
from st3fx.export.capture import capture, io_names
from st3fx.export.opset import check_opset, lowered
from st3fx.export.quiet import quiet
from st3fx.export.result import ExportResult, Parity, Port, Size
from st3fx.export.sizes import size_of_files
from st3fx.export.write import write_model
from st3fx.export.zeros import check_zeros, used
from st3fx.inputs import Example
from st3fx.messages import describe
from st3fx.onnx_passes.fold_batch_norm import BatchNorms
from st3fx.onnx_passes.pipeline import prepare
from st3fx.state import preserved


@dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
        opset: ``None`` for the exporter's default.
        fixed_batch: Leave the batch size as it is in the example.
        batch_sizes: That are compared with random values; not looked at with a fixed batch.
        verify: Run the file beside the model.
        sparse_initializers: Store weights as index and value where that is smaller.
        tolerance: Largest relative difference that passes; ``None``: by the type of the weights.
        seed: Of the random values.
    """

    opset: int | None = None
    fixed_batch: bool = False
    batch_sizes: tuple[int, ...] = (1, 3)
    verify: bool = True
    sparse_initializers: bool = False
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no export can be made with.

        Raises:
            ExportError: For an opset, batch size or tolerance outside its range.
        """
        check_opset(self.opset)
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise ExportError(f"batch sizes {self.batch_sizes}: give numbers from 1 on, e.g. 1,3")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ExportError(f"tolerance {self.tolerance}: give a number above 0, e.g. 1e-4")


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
        path: The file; one that is there is replaced.
        settings: How.
        before: Gives the size of the weights before.
        progress: Called with the name of each stage as it begins.

    Raises:
        InputError: When the model refuses the example.
        ExportError: When it cannot be exported, or a check fails. Nothing is left then.
    """
    began = time.perf_counter()
    with preserved(model), torch.no_grad():
        model.eval()
        job = _Job(model, example, settings)
        progress("capture")
        graph, norms, expected = job.graph()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_neighbour(path) as folder:
                progress("save")
                part = folder / path.name
                sparse = _write_checked(graph, part, settings, progress)
                zeros = check_zeros(part, model, expected, norms.biases)
                progress("compare")
                rows = job.compare(part)
                progress("measure")
                files = sorted(folder.iterdir())
                sizes = (before(), size_of_files(path.name, files))
                written = _put_in_place(files, path)
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return ExportResult(
        path=path,
        files=written,
        opset=graph.opset_imports[""],
        inputs=tuple(map(_port, graph.graph.inputs)),
        outputs=tuple(map(_port, graph.graph.outputs)),
        dynamic_batch=not settings.fixed_batch and any(job.batched),
        baked=job.call.baked,
        batch_norms=len(norms.folded),
        batch_norms_kept=norms.kept,
        zeros=zeros,
        sparse_initializers=sparse,
        parity=rows,
        tolerance=job.tolerance,
        sizes=sizes,
        seconds=time.perf_counter() - began,
    )


class _Job:
    """One model with one example of a call."""

    def __init__(self, model: nn.Module, example: Example, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.name = type(model).__name__
        self.call = Call.of(model, example)
        self.batched = batched(self.call.tensors)
        self.flat = Flat(model, self.call).eval()
        self.outputs = self._output_names()
        kinds = {parameter.dtype for parameter in model.parameters()}
        widest = max((parity.TOLERANCES.get(kind, parity.TOLERANCE) for kind in kinds), default=0.0)
        self.tolerance = settings.tolerance or widest or parity.TOLERANCE

    def _output_names(self) -> tuple[str, ...]:
        # Clones: a forward may write into its inputs.
        args, kwargs = self.call.arguments([tensor.clone() for tensor in self.call.tensors])
        try:
            with preserved(self.model):
                result = self.model(*args, **kwargs)
        except Exception as error:
            raise InputError(
                f"{self.name} refuses the example inputs in eval mode: {describe(error)}"
            ) from error
        names = unique([name for name, _ in outputs(result)])
        if not names:
            raise ExportError(f"{self.name} returns no tensor: an ONNX model would have no output")
        both = set(names) & set(self.call.names)
        return unique([f"{n}_out" if n in both else n for n in names])

    def graph(self) -> tuple[ir.Model, BatchNorms, set[str]]:
        """The graph to write, what became of batch norms, and the parameters that are in it."""
        settings = self.settings
        graph = capture(
            self.flat,
            self.name,
            self.call.tensors,
            self.batched,
            opset=settings.opset,
            fixed_batch=settings.fixed_batch,
        )
        names = [name for name, _ in self.model.named_parameters(remove_duplicate=False)]
        expected = used(graph, names)
        with quiet():
            norms = prepare(graph, expected)
            graph = lowered(graph, settings.opset)
        io_names(graph, self.call.names, self.outputs)
        return graph, norms, expected - norms.absorbed

    def compare(self, path: Path) -> tuple[Parity, ...]:
        """Run a written file beside the model."""
        if not self.settings.verify:
            return ()
        fixed = self.settings.fixed_batch or not any(self.batched)
        return parity.verify(
            path,
            self.flat,
            self.call,
            self.batched,
            self.outputs,
            batch_sizes=() if fixed else self.settings.batch_sizes,
            tolerance=self.tolerance,
            seed=self.settings.seed,
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


def _put_in_place(files: Sequence[Path], path: Path) -> tuple[Path, ...]:
    """Move what was written beside the file; the file that names the others comes last."""
    for file in sorted(files, key=lambda file: file.name == path.name):
        file.replace(path.parent / file.name)
    return tuple(sorted(path.parent / file.name for file in files))


def _port(value: ir.Value) -> Port:
    shape = value.shape or ()
    sizes = tuple(size if isinstance(size, int) else str(size) for size in shape)
    return Port(str(value.name), value.dtype.name if value.dtype else "?", sizes)
