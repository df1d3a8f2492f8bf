"""From bundles, SPECs, models and ONNX files to what a benchmark runs: files with inputs.

From what a benchmark runs to the variants that it compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st3fx import runtime
from st3fx.bench import onnx_call, onnx_file
from st3fx.bench.dense import write_dense
from st3fx.bench.onnx_file import (
    has_sparse_operators,
    is_quantized,
    is_wanted,
    noted_shapes,
    read_inputs,
)
from st3fx.bench.variant import Array, BenchSettings, Variant
from st3fx.commands.analyze import count_flops, of_file
from st3fx.commands.eager import PREPARE
from st3fx.commands.export import export_onnx
from st3fx.commands.models import Request, folded, no_example
from st3fx.errors import BenchError, FlopsError, TrustError, quoted
from st3fx.export.batch import batched, repeated
from st3fx.export.call import Call, unique
from st3fx.export.quantized import write_lowered
from st3fx.flops.flops_report import FlopsReport
from st3fx.loading.input_spec import parse_inputs
from st3fx.plan.example import Example
from st3fx.runtime.operators import Shape, plain_path
from st3fx.training.folder import RunFolder

Report = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model as an ONNX file with values for its inputs.

    Attributes:
        name: Short.
        path: The file.
        inputs: Batch size -> values of the inputs.
        batch: Samples where no batch size is asked for.
        zeros: Name of each weight that has zeros -> how many.
        sparsity: Share of zeros among the weights that multiply, where it is known.
        bound: How many times as fast as without zeros it can be at most, where it is known.
        request: What it was exported from; ``None`` for an ONNX file, or a model in memory.
        is_file: Whether it was given as an ONNX file.
        skips_zeros: Whether it has sparse operators.
        integers: Whether its products are of 8-bit integers.
        kernels: Its form with sparse operators; ``None`` where there is none.
        int8: Its form in 8-bit integers, from the run that it was trained in; ``None`` likewise.
        said: What a reader should know of it.
    """

    name: str
    path: Path
    inputs: Callable[[int], Sequence[Array]]
    batch: int
    zeros: Mapping[str, int]
    sparsity: float | None
    bound: float | None
    request: Request | None = None
    is_file: bool = False
    skips_zeros: bool = False
    integers: bool = False
    kernels: Path | None = None
    int8: Subject | None = None
    said: str = ""


def from_file(
    path: Path, shapes: Sequence[Shape], settings: BenchSettings, report: Report
) -> Subject:
    """An ONNX file as it is.

    Raises:
        BenchError: When it cannot be run, or a size is not known.
    """
    report("check")
    ports = read_inputs(path, custom_ops=settings.custom_ops is not None)
    shapes = shapes or noted_shapes(path)
    batch = (settings.batch_sizes or (onnx_file.default_batch(ports, shapes),))[0]

    def inputs(batch: int) -> Sequence[Array]:
        wanted = onnx_file.sized(ports, batch, shapes, str(path))
        return onnx_file.values(ports, wanted, settings.seed)

    for size in settings.batch_sizes or (batch,):
        onnx_file.sized(ports, size, shapes, str(path))  # now rather than after minutes of work
    about = _counted(path, onnx_file.sized(ports, batch, shapes, str(path)), report)
    return Subject(
        path.name, path, inputs, batch, **about, is_file=True,
        skips_zeros=has_sparse_operators(path), integers=is_quantized(path),
    )  # fmt: skip


def with_kernels(
    subject: Subject, folder: Path, settings: BenchSettings, report: Report
) -> Subject:
    """A quantized file, and what ``st3fx export --sparse-kernels`` makes of it.

    Raises:
        ExportError: As ``write_lowered``.
    """
    if not (subject.integers and subject.zeros and is_wanted(settings)) or subject.skips_zeros:
        return subject
    names = [port.name for port in read_inputs(subject.path, custom_ops=True)]
    feed = dict(zip(names, subject.inputs(subject.batch), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    written = write_lowered(subject.path, folder / "int8.sparse.onnx", [feed], progress=report)
    return dataclasses.replace(subject, kernels=written.path)


def with_int8(
    subject: Subject, run: RunFolder, folder: Path, settings: BenchSettings, report: Report
) -> Subject:
    """The model of a run, with its form in integers if it has been quantized.

    Raises:
        BenchError: When that file cannot be run.
    """
    if not run.int8.is_file():
        said = f"Not measured in INT8: st3fx quantize {quoted(run.path)} writes {run.int8}."
        return dataclasses.replace(subject, said=f"{subject.said} {said}".strip())
    ports, arrays = read_inputs(run.int8), subject.inputs(subject.batch)
    try:
        shapes = [array.shape for array in arrays]
        if onnx_file.sized(ports, subject.batch, shapes) != tuple(shapes):
            raise BenchError("it was made for inputs of other sizes")
    except BenchError as error:
        return dataclasses.replace(subject, said=f"Not measured in INT8, {run.int8}: {error}.")
    about = _counted(run.int8, shapes, report)
    int8 = Subject(run.int8.name, run.int8, subject.inputs, subject.batch, **about, integers=True)
    return dataclasses.replace(subject, int8=with_kernels(int8, folder, settings, report))


def from_request(
    request: Request, folder: Path, settings: BenchSettings, report: Report, *, fixed_batch: bool
) -> Subject:
    """The model of a bundle or a SPEC, folded and exported.

    Raises:
        St3fxError: As ``st3fx.commands.models.folded`` and ``st3fx.export_onnx``.
    """
    try:
        model = folded(request, report, with_example=True)
    except TrustError:
        counted = None if settings.torch else of_file(request, report)
        if counted is None:
            raise
        return _from_its_file(request, Path(counted.model), settings, report)
    if model.example is None:
        raise no_example(request.spec)
    example = Example.of(model.example)
    subject = from_model(
        model.model, example, folder / f"{request.name}.onnx", settings, report,
        fixed_batch=fixed_batch, given=bool(request.inputs),
    )  # fmt: skip
    return dataclasses.replace(subject, name=_name(request), request=request)


def _from_its_file(
    request: Request, path: Path, settings: BenchSettings, report: Report
) -> Subject:
    """A bundle whose code is not trusted, by an ONNX file of it that lies there."""
    shapes = [tuple(tensor.shape) for tensor in parse_inputs(request.inputs)]
    said = (
        f"Measured by {path}: {request.spec} names code of its own, which has not run. With "
        "--trust or --model SPEC it is measured by sparse kernels too."
    )
    subject = from_file(path, shapes, settings, report)
    return dataclasses.replace(subject, name=_name(request), said=said)


def _name(request: Request) -> str:
    """A short name: that of its folder where training called a bundle ``model.st3fx``."""
    if request.is_bundle and request.name == "model":
        return Path(request.spec).resolve().parent.name
    return request.name


def from_model(
    model: nn.Module,
    example: Example,
    path: Path,
    settings: BenchSettings,
    report: Report,
    *,
    fixed_batch: bool,
    given: bool,
) -> Subject:
    """A model in memory, exported.

    Args:
        model: Folded, or as ``export_onnx`` takes it.
        example: One call.
        path: Of the file to write.
        settings: Which batch sizes are to be measured.
        report: Called with the name of each stage as it begins.
        fixed_batch: Build the batch size of the example in.
        given: Whether the example's batch size is that to measure where no other is asked for.
    """
    call = Call.of(model, example)
    which = batched(call.tensors)
    own = next((t.shape[0] for t, has in zip(call.tensors, which, strict=True) if has), 1)
    other = [size for size in settings.batch_sizes if size != own]
    if fixed_batch and other:
        raise BenchError(f"--fixed-batch builds batch {own} in: batch {other[0]} cannot be given")
    export_onnx(
        model, example.args, path, example_kwargs=example.kwargs, fixed_batch=fixed_batch,
        seed=settings.seed, progress=report,
    )  # fmt: skip

    def inputs(batch: int) -> Sequence[Array]:
        tensors = call.tensors if batch == own else repeated(call.tensors, which, batch)
        return [_array(tensor) for tensor in tensors]

    batch = (settings.batch_sizes or (own if given or fixed_batch else 1,))[0]
    shapes = [array.shape for array in inputs(batch)]
    about = _counted(path, shapes, report)
    subject = Subject(type(model).__name__, path, inputs, batch, **about)
    if not subject.zeros or not is_wanted(settings):
        return subject
    # Without its dead channels: the graph that is compared with it keeps them.
    written = export_onnx(
        model, example.args, path.parent / "kernels" / path.name, sparse_kernels=True,
        example_kwargs=example.kwargs, fixed_batch=fixed_batch, seed=settings.seed,
        progress=report,
    )  # fmt: skip
    assert written.sparse is not None
    if not written.sparse.kernels.sparse:
        return subject
    return dataclasses.replace(subject, kernels=written.sparse.path)


def _counted(path: Path, shapes: Sequence[Shape], report: Report) -> dict[str, Any]:
    """What the zeros of a file are worth; nothing where it has operators that no rule knows."""
    report("count")
    try:
        counted: FlopsReport = count_flops(path, list(shapes))
    except FlopsError:
        return {"zeros": {}, "sparsity": None, "bound": None}
    rows = counted.by_layer.values()
    zeros = {row.name: row.parameters - row.nonzeros for row in rows}
    zeros = {name: count for name, count in zeros.items() if count > 0}
    bound = None if counted.mac_bound == float("inf") else counted.mac_bound
    return {"zeros": zeros, "sparsity": counted.weight_sparsity, "bound": bound}


def _array(tensor: Tensor) -> Array:
    array: Array = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()
    return array


DENSE_ROW, DENSE_INT8 = "dense", "dense INT8"
"""Names of the rows of a model without its zeros."""

SPARSE, SPARSE_INT8 = "sparse kernels", "sparse INT8 kernels"
"""Names of the rows of a model in its sparse form."""


def variants(
    subjects: Sequence[Subject],
    settings: BenchSettings,
    folder: Path,
    report: Callable[[str], None],
) -> list[Variant]:
    """What is compared; the first is the baseline.

    A single model with zeros, and a first one that was exported here, gets its dense counterpart
    before it.
    """
    first = subjects[0]
    rows = []
    if wants_dense(subjects):
        rows += _dense(first, folder, settings, report)
    names = unique(_names(subjects))
    for name, subject in zip(names, subjects, strict=True):
        prefix = "" if len(subjects) == 1 else f"{name}, "
        rows.append(_variant(name, subject.path, subject, settings))
        int8 = subject.int8
        if int8 is not None and int8.zeros:
            place = folder / f"int8-{len(rows)}"
            dense = _dense(int8, place, settings, report)
            rows += [dataclasses.replace(row, name=f"{prefix}{row.name}") for row in dense]
        elif int8 is not None:
            rows.append(_variant(f"{prefix}{DENSE_INT8}", int8.path, int8, settings))
        for each in (subject, int8):
            if each is not None and each.kernels is not None:
                title = f"{prefix}{SPARSE_INT8 if each.integers else SPARSE}"
                sparse = dataclasses.replace(each, path=each.kernels, skips_zeros=True)
                rows.append(_variant(title, sparse.path, sparse, settings))
    if settings.torch and first.request is None:
        raise BenchError(
            "rows by PyTorch need a bundle or a SPEC first: an ONNX file is no PyTorch model"
        )
    for mode in settings.torch:
        assert first.request is not None
        arguments = {"request": dataclasses.asdict(first.request), "mode": mode}
        rows.append(
            Variant(f"torch {mode}", PREPARE, arguments, first.inputs, first.sparsity, first.bound)
        )
    return rows


def _dense(
    subject: Subject, folder: Path, settings: BenchSettings, report: Callable[[str], None]
) -> list[Variant]:
    """The dense counterpart of a file, or none.

    Where zeros are in no weight as it is stored (computed, packed) some would be left.
    """
    report("dense")
    folder.mkdir(parents=True, exist_ok=True)
    path, subject = folder / "dense.onnx", _as_it_was(subject, report)
    if write_dense(subject.path, path, subject.zeros) != sum(subject.zeros.values()):
        return []
    blank = dataclasses.replace(subject, sparsity=0.0, bound=None, skips_zeros=False)
    return [_variant(DENSE_INT8 if subject.integers else DENSE_ROW, path, blank, settings)]


def _as_it_was(subject: Subject, report: Callable[[str], None]) -> Subject:
    """The file that one with INT8 kernels was made from, where it lies beside that.

    ONNX Runtime runs it faster than what our operators become when they are written as ONNX's.
    """
    path = plain_path(subject.path)
    if not (subject.integers and subject.skips_zeros and path.is_file()):
        return subject
    about = _counted(path, [array.shape for array in subject.inputs(subject.batch)], report)
    same = about["sparsity"] == subject.sparsity and about["bound"] == subject.bound
    return dataclasses.replace(subject, path=path, zeros=about["zeros"]) if same else subject


def wants_dense(subjects: Sequence[Subject]) -> bool:
    """Whether the first model is to have a dense counterpart."""
    return bool(subjects[0].zeros) and (len(subjects) == 1 or not subjects[0].is_file)


def _variant(name: str, path: Path, subject: Subject, settings: BenchSettings) -> Variant:
    custom_ops = settings.custom_ops
    if subject.skips_zeros and custom_ops is None:
        custom_ops = runtime.library()
    arguments = {
        "path": str(path),
        "providers": list(settings.providers),
        # Absolute: the loader of shared libraries looks for a bare name elsewhere.
        "custom_ops": custom_ops and str(Path(custom_ops).resolve()),
    }
    return Variant(
        name, onnx_call.PREPARE, arguments, subject.inputs, subject.sparsity, subject.bound,
        subject.skips_zeros, subject.integers,
    )  # fmt: skip


def _names(subjects: Sequence[Subject]) -> list[str]:
    """Names of the rows: ``folded`` alone, else those of the models, as long as they differ."""
    if len(subjects) == 1 and not subjects[0].is_file:
        return ["folded" if subjects[0].zeros else "dense"]
    names = [subject.name for subject in subjects]
    if len(set(names)) < len(names):
        return [s.request.spec if s.request else str(s.path) for s in subjects]
    return names
