"""How fast models run, side by side: ``st3fx bench``."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from st3fx import native
from st3fx.bench import onnx_file
from st3fx.bench.bench_result import BenchResult, BenchRow, make_rows
from st3fx.bench.onnx_call import CONFIG, known_providers
from st3fx.bench.onnx_file import check_same
from st3fx.bench.rounds import measure
from st3fx.bench.variant import DENSE, BenchSettings
from st3fx.bench.verdict import verdict
from st3fx.commands.analyze import WEIGHT_FILES
from st3fx.commands.models import Request, of_run
from st3fx.commands.progress import silent
from st3fx.commands.subjects import (
    DENSE_INT8,
    DENSE_ROW,
    Report,
    Subject,
    from_file,
    from_model,
    from_request,
    variants,
    wants_dense,
    with_int8,
    with_kernels,
)
from st3fx.errors import BenchError, quoted
from st3fx.files.atomic import scratch
from st3fx.loading.input_spec import parse_inputs
from st3fx.modules.unwrap import unwrapped
from st3fx.plan.example import Example
from st3fx.runtime.calibration import cores, cpus, environment
from st3fx.training.folder import RunFolder

NO_DENSE = (
    "No dense counterpart of {}: its zeros are in no weight as it is stored, but computed from "
    "several, or packed."
)

Model = str | Path | Request | nn.Module


def benchmark(
    *models: Model,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    settings: BenchSettings | None = None,
    fixed_batch: bool = False,
    trust: bool = False,
    model: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchResult:
    """Measure latency and throughput in ONNX Runtime, side by side.

    A model that is no ONNX file is folded and exported into a temporary folder. Of a single model
    with zeros, and of a first one that is no ONNX file, a dense counterpart is measured too, as the
    baseline: the same graph with a small random number in the place of every zero weight. Of
    several ONNX files the first is the baseline.

    Where a model has zeros, its form with sparse kernels is measured too, without dead channels.

    Every variant is loaded into a process of its own. After warm-up they are called in rounds, each
    variant in each round, in an order drawn anew; ratios are taken round by round.

    Args:
        *models: Bundles, SPECs, ONNX files, requests with more settings, or models in memory.
        example_inputs: For models in memory: a tensor, a tuple of positional arguments, or a dict
            of keyword arguments.
        example_kwargs: Keyword arguments beside positional ``example_inputs``.
        settings: Batch sizes, threads, how long, providers.
        fixed_batch: Export with the batch size of the example built in.
        trust: Run the code that bundles and runs name, and remember that for their folders.
        model: A SPEC to build the model of bundles from, instead of the one that they name.
        progress: Called with what is under way.

    Returns:
        Rows, what they show in sentences, and what it takes to measure again.

    Raises:
        BenchError: When a file cannot be run, a size is not known, models are made for different
            sizes, or a setting does not fit.
        St3fxError: As ``st3fx.commands.models.folded`` and ``st3fx.export_onnx``.
    """
    if not models:
        raise BenchError("no model: give a bundle, a SPEC, an ONNX file or an nn.Module")
    chosen, report = known(settings or BenchSettings()), progress or silent
    requests = [
        Request(str(m), trust=trust, model=model) if isinstance(m, str | Path) else m
        for m in models
    ]
    for request in requests:
        _check(request, fixed_batch=fixed_batch)
    with scratch() as folder:
        subjects = [
            _from_memory(request, example_inputs, example_kwargs, folder / str(index), chosen,
                         report, fixed_batch=fixed_batch)
            if isinstance(request, nn.Module)
            else _subject(request, folder / str(index), chosen, report, fixed_batch=fixed_batch)
            for index, request in enumerate(requests)
        ]  # fmt: skip
        if len(subjects) == 1 and subjects[0].is_file:
            subjects = [with_kernels(subjects[0], folder, chosen, report)]
        rows, measured = run_all(subjects, chosen, folder, report)
    return BenchResult(
        model=", ".join(subject.name for subject in subjects),
        rows=tuple(rows),
        settings=as_json(measured),
        environment=ran_on(rows),
        command=_command(requests, measured, fixed_batch=fixed_batch),
        verdict=tuple(_said(subjects, rows, measured, chosen.threads)),
    )


def known(settings: BenchSettings) -> BenchSettings:
    """The settings with full names of providers, after a look at what this machine has."""
    settings = dataclasses.replace(settings, providers=known_providers(settings.providers))
    if settings.custom_ops is not None and not Path(settings.custom_ops).is_file():
        raise BenchError(f"no file {settings.custom_ops}: --custom-ops takes a shared library")
    return settings


def _said(
    subjects: Sequence[Subject],
    rows: Sequence[BenchRow],
    settings: BenchSettings,
    threads: Sequence[int],
) -> Iterator[str]:
    """What the rows show, and what could not be measured.

    Args:
        subjects: What was measured.
        rows: The whole benchmark.
        settings: With what it was.
        threads: Numbers of threads that were asked for.
    """
    yield from verdict(rows, cores(), _isa(rows))
    with_zeros = [each for s in subjects for each in (s, s.int8) if each and each.zeros]
    without = [s.name for s in with_zeros if s.kernels is None and _could(s, subjects)]
    yield from onnx_file.verdict(without, settings)
    yield from _bound_said(threads)
    if wants_dense(subjects) and rows[0].name not in (DENSE_ROW, DENSE_INT8):
        yield NO_DENSE.format(subjects[0].name)
    yield from (subject.said for subject in subjects if subject.said)


def _could(subject: Subject, subjects: Sequence[Subject]) -> bool:
    """Whether a subject is of a kind that gets a row with sparse kernels."""
    return not subject.is_file or (
        subject.integers and len(subjects) == 1 and not subject.skips_zeros
    )


def _isa(rows: Sequence[BenchRow]) -> str:
    """The instructions of the kernels that were measured; empty without any."""
    return native.isa() if any(row.skips_zeros for row in rows) else ""


def run_all(
    subjects: Sequence[Subject], settings: BenchSettings, folder: Path, report: Report
) -> tuple[list[BenchRow], BenchSettings]:
    """The rows, and the settings with what was left to choose."""
    settings = dataclasses.replace(
        settings,
        batch_sizes=settings.batch_sizes or (subjects[0].batch,),
        threads=_bounded(settings.threads or (cores(),)),
    )
    for batch in settings.batch_sizes:
        check_same([(s.name, [array.shape for array in s.inputs(batch)]) for s in subjects])
    compared = variants(subjects, settings, folder, report)
    rows = []
    for batch in settings.batch_sizes:
        for threads in settings.threads:
            timings = measure(compared, batch, threads, settings, folder, report)
            rows += make_rows(compared, timings, batch, threads)
    return rows, settings


def _bounded(threads: Sequence[int]) -> tuple[int, ...]:
    """Numbers of threads that the machine can run at once, each once: more would only wait."""
    return tuple(dict.fromkeys(min(number, cpus()) for number in threads))


def _bound_said(asked: Sequence[int]) -> Iterator[str]:
    """What became of numbers of threads that the machine has not."""
    more = [f"{number:,}" for number in asked if number > cpus()]
    if more:
        yield (
            f"{' and '.join(more)} threads were asked for: this process may use {cpus()} "
            f"{'CPU' if cpus() == 1 else 'CPUs'}, so it was measured with {cpus()}."
        )


def _from_memory(
    model: nn.Module,
    inputs: Any,
    kwargs: Mapping[str, Any] | None,
    folder: Path,
    settings: BenchSettings,
    report: Report,
    *,
    fixed_batch: bool,
) -> Subject:
    if inputs is None:
        raise BenchError("a model in memory needs example_inputs")
    model = unwrapped(model)
    example = Example.of(inputs, kwargs, model)
    return from_model(
        model, example, folder / "model.onnx", settings, report, fixed_batch=fixed_batch, given=True
    )


def _subject(
    request: Request, folder: Path, settings: BenchSettings, report: Report, *, fixed_batch: bool
) -> Subject:
    if _is_graph(request):
        shapes = [tuple(tensor.shape) for tensor in parse_inputs(request.inputs)]
        return from_file(Path(request.spec), shapes, settings, report)
    named, run = of_run(request, BenchError)
    subject = from_request(named, folder, settings, report, fixed_batch=fixed_batch)
    around = RunFolder(Path(named.spec).parent)
    if run is None and around.settings.is_file() and around.bundle == Path(named.spec):
        run = around
    if run is None or named.sparsity is not None:
        return subject
    return with_int8(subject, run, folder, settings, report)


def _is_graph(request: Request) -> bool:
    path = Path(request.spec)
    return path.suffix == ".onnx" or (path.is_file() and path.suffix != ".py")


def _check(request: Request | nn.Module, *, fixed_batch: bool) -> None:
    """Refuse what cannot be, before the first model is built."""
    if isinstance(request, nn.Module):
        return
    path = Path(request.spec)
    if path.suffix in WEIGHT_FILES:
        raise BenchError(
            f"{path} holds weights and no graph: st3fx bench SPEC --weights {quoted(path)}"
        )
    if _is_graph(request) and (request.weights or request.sparsity is not None or fixed_batch):
        raise BenchError(
            f"{path} is exported already: leave --weights, --sparsity and --fixed-batch out"
        )


def ran_on(rows: Sequence[BenchRow]) -> dict[str, Any]:
    """The machine that rows were measured on, as JSON values."""
    isa = _isa(rows)
    return {**environment(), **({"kernels": isa} if isa else {})}


def as_json(settings: BenchSettings) -> dict[str, Any]:
    """Settings of a benchmark, with what was left to choose, as JSON values."""
    fields = dataclasses.asdict(settings).items()
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields}
    return {**plain, "session": dict(CONFIG), "dense": DENSE}


def _command(
    requests: Sequence[Request | nn.Module], settings: BenchSettings, *, fixed_batch: bool
) -> str:
    """The command that measures the same again; empty for models in memory."""
    named = [request for request in requests if isinstance(request, Request)]
    if len(named) < len(requests):
        return ""
    first = named[0]
    options: list[tuple[str, Any]] = [
        ("-b", settings.batch_sizes),
        ("-ncores", settings.threads),
        ("-i", first.inputs),
        ("--weights", first.weights),
        ("--sparsity", first.sparsity),
        ("--model", first.model),
        ("--iterations", settings.iterations),
        ("-t", None if settings.iterations else settings.seconds),
        ("-w", settings.warmup),
        ("--provider", settings.providers if settings.providers != _DEFAULT.providers else None),
        ("--torch", settings.torch),
        ("--custom-ops", settings.custom_ops),
        ("--seed", settings.seed or None),
    ]
    flags = [
        ("--allow-dense", first.allow_dense),
        ("--fixed-batch", fixed_batch),
        ("--no-sparse-kernels", not settings.sparse_kernels),
    ]
    words = [request.spec for request in named]
    for option, given in options:
        for value in given if isinstance(given, tuple) else () if given is None else (given,):
            words += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    words += [flag for flag, is_set in flags if is_set]
    return shlex.join(["st3fx", "bench", *words])


_DEFAULT = BenchSettings()
