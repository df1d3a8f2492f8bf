"""A run as a page: the facade's verb that reports.

What a bundle's model is: its zeros, costs and sizes, each from the engine that knows it.

From the files of a run or a bundle to the facts of its report.
"""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import nn

from st3fx.api import dataflow, fold
from st3fx.bench.bench_result import BenchResult, read_result
from st3fx.commands.analyze import count_flops, of_file
from st3fx.commands.convert import restored, stood_in
from st3fx.commands.models import Request, bundle_example
from st3fx.commands.progress import silent
from st3fx.errors import EmptyLayerWarning, ReportError, St3fxError, TrustError, describe
from st3fx.export.export_result import Size
from st3fx.export.weights import size_of_files, size_of_tensors
from st3fx.files.atomic import scratch
from st3fx.files.bundle import MANIFEST, read_bundle
from st3fx.files.compact import SUFFIX, save_compact
from st3fx.flops.flops_report import Convention, FlopsReport
from st3fx.loading.spec import parse_spec
from st3fx.modules.marks import is_state
from st3fx.passes.convert.dataflow import flow_of
from st3fx.passes.convert.stand_in import can_stand_in
from st3fx.plan.sites import SparsityPlan
from st3fx.report.facts import (
    Facts,
    Layer,
    ModelFacts,
    ReportResult,
    TrainingFacts,
    convert_command,
    train_command,
)
from st3fx.report.histogram import Weights, small, spread
from st3fx.report.page import (
    GENERATOR,
    check_folder,
    check_target,
    make_page,
    make_sections,
    write_all,
)
from st3fx.report.png import to_png
from st3fx.report.section import Section
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.granularity import parse
from st3fx.training.folder import RunFolder
from st3fx.training.log import Log
from st3fx.training.sensitivity import SensitivityResult, read_sensitivity
from st3fx.training.settings import read_run
from st3fx.version import VERSION


def measure(
    bundle: Path,
    files: Sequence[Path],
    progress: Callable[[str], None],
    *,
    trust: bool = False,
    model: str | None = None,
) -> ModelFacts:
    """Load a bundle's model and measure it.

    Args:
        bundle: The bundle.
        files: Other files made of the model, for their sizes.
        progress: Called with the name of each stage as it begins.
        trust: As for ``load_bundle``.
        model: As for ``load_bundle``.

    Raises:
        St3fxError: As ``load_bundle``.
    """
    progress("load")
    read = read_bundle(bundle)
    manifest = read.manifest
    with warnings.catch_warnings():
        # The report names empty layers itself.
        warnings.simplefilter("ignore", EmptyLayerWarning)
        refused = None
        try:
            built = restored(read, trust=trust, model=model).model
        except TrustError as error:
            if not can_stand_in(manifest.plan):
                raise
            refused, built = error, stood_in(read)
        sparsifier = Sparsifier(built)
    weights = _weights(sparsifier)
    flow = dataflow(built) if refused is None else flow_of(manifest.plan)
    own = {key: value for key, value in built.state_dict().items() if not is_state(key)}
    progress("fold")
    folded = fold(built)
    progress("count")
    if refused is None:
        made = partial(bundle_example, read, trust=trust, model=model)
        flops, uncounted = _count(folded, made, sparsifier.plan)
    else:
        flops, uncounted = _count_file(bundle, refused, progress)
    rows = flops["exact"].by_layer if flops else {}
    progress("measure")
    return ModelFacts(
        recipe=manifest.recipe,
        versions=manifest.versions,
        plan=sparsifier.plan,
        layers=tuple(
            Layer(
                site=site,
                nonzeros=int(weights[site.name].effective.count_nonzero()),
                threshold=weights[site.name].threshold,
                counts=small(weights[site.name]),
                flops=rows.get(site.name),
            )
            for site in sparsifier.plan.sites
        ),
        spread=spread(list(weights.values())),
        flops=flops,
        uncounted=uncounted,
        flow=flow,
        sizes=(size_of_tensors("dense weights", own), *_sizes(folded, files)),
    )


def _weights(sparsifier: Sparsifier) -> dict[str, Weights]:
    """Latent and effective weights by site."""
    held = {item.site.name: item for item in sparsifier.run.bound()}
    effective, thresholds = sparsifier.effective_weights(), sparsifier.thresholds
    of_weights = not sparsifier.method.learned
    return {
        name: Weights(
            latent=held[name].weight().detach(),
            effective=effective[name],
            # One of probabilities says nothing of weights.
            threshold=thresholds[name] if of_weights and thresholds[name] >= 0 else None,
        )
        for name in (site.name for site in sparsifier.plan.sites)
    }


def _count(
    folded: nn.Module, made: Callable[[], Any], plan: SparsityPlan
) -> tuple[dict[str, FlopsReport], str]:
    """The count by each convention for one sample, or why there is none."""
    try:
        example, blocks = made(), parse(plan.granularity).consecutive
        counts = {
            name: count_flops(folded, example, name, batch=1, blocks=blocks)
            for name in get_args(Convention)
        }
    except St3fxError as error:
        return {}, describe(error)
    sites = frozenset(site.name for site in plan.sites)
    return {name: dataclasses.replace(c, sites=sites) for name, c in counts.items()}, ""


def _count_file(
    bundle: Path, refused: TrustError, progress: Callable[[str], None]
) -> tuple[dict[str, FlopsReport], str]:
    """The count of an ONNX file of the model, which needs no code, or why there is none."""
    counts = {}
    for name in get_args(Convention):
        counted = of_file(Request(str(bundle)), progress, name, batch=1)
        if counted is None:
            return {}, str(refused)
        counts[name] = counted
    return counts, ""


def _sizes(folded: nn.Module, files: Sequence[Path]) -> list[Size]:
    """Of the folded weights as they are and as a compact file, and of the files that are there."""
    state = folded.state_dict()
    sizes = [size_of_tensors("folded weights", state)]
    if not any(path.suffix == SUFFIX for path in files):
        with scratch() as folder:
            path = folder / f"folded{SUFFIX}"
            save_compact(state, path)
            sizes.append(size_of_files("compact file", [path]))
    return sizes + [size_of_files(path.name, [path]) for path in files]


def is_run(source: Path) -> bool:
    """Whether a folder is that of a run."""
    return RunFolder(source).settings.is_file()


def gather(
    source: Path,
    bench: str | Path | None,
    progress: Callable[[str], None],
    *,
    trust: bool = False,
    model: str | None = None,
) -> Facts:
    """All that is known about a run or a bundle.

    Args:
        source: The folder of a run, or a bundle.
        bench: A benchmark's file; ``None`` for the one in the run.
        progress: Called with the name of each stage as it begins.
        trust: As for ``load_bundle``.
        model: As for ``load_bundle``.

    Raises:
        ReportError: When there is neither run nor bundle, or the log is damaged.
        St3fxError: As ``read_result``, ``from_dict`` and ``load_bundle``.
    """
    found = is_run(source)
    if not found and not (source / MANIFEST).is_file():
        raise ReportError(
            f"{source} is no run and no bundle: give the --output-dir of st3fx train, or what "
            "st3fx convert wrote"
        )
    # What is small first, so that a wrong file does not cost the user a minute.
    measured = _bench(source, bench)
    cost = _sensitivity(RunFolder(source).sensitivity) if found else None
    again = (measured.command,) if measured is not None and _is_bench(measured.command) else ()
    report = ["st3fx", "report", str(source), *(["--bench", str(bench)] if bench else [])]
    if not found:
        about = measure(source, (), progress, trust=trust, model=model)
        commands = (convert_command(about.recipe, source), *again, shlex.join(report))
        name = parse_spec(about.recipe.spec).name
        return Facts(name, source, False, about, None, measured, commands)
    run, bundle = training_of(RunFolder(source)), RunFolder(source).bundle
    trained, refused = None, ""
    if bundle.is_dir():
        try:
            trained = measure(bundle, files_of(source), progress, trust=trust, model=model)
        except TrustError as error:
            refused = str(error)
    name = name_of(run.settings.spec if trained is None else trained.recipe.spec)
    commands = (train_command(run.settings), *again, shlex.join(report))
    return Facts(name, source, True, trained, run, measured, commands, refused, cost)


def name_of(spec: str) -> str:
    """The model's name, of a SPEC or a bundle."""
    return Path(spec).stem if Path(spec).is_dir() else parse_spec(spec).name


def _is_bench(command: str) -> bool:
    """Whether a command that a file holds, for the reader to run again, is one of ours and one."""
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    return words[:2] == ["st3fx", "bench"] and shlex.join(words) == command


def training_of(folder: RunFolder, *, log: bool = True) -> TrainingFacts:
    """The settings of a run, and its log if that is wanted.

    Raises:
        TrainError: When one of them is damaged.
    """
    settings = read_run(folder.settings)
    return TrainingFacts(settings, tuple(Log(folder.log).rows()) if log else ())


def _bench(source: Path, bench: str | Path | None) -> BenchResult | None:
    if bench is not None:
        return read_result(bench)
    found = RunFolder(source).bench
    return read_result(found) if is_run(source) and found.exists() else None


def _sensitivity(path: Path) -> SensitivityResult | None:
    return read_sensitivity(path) if path.exists() else None


def files_of(run: Path) -> tuple[Path, ...]:
    """Weights and graphs in the folder of a run."""
    patterns = ("*.safetensors", "*.st3w", "*.onnx")
    return tuple(sorted(path for pattern in patterns for path in run.glob(pattern)))


def write_report(
    source: str | Path,
    output: str | Path | None = None,
    *,
    bench: str | Path | None = None,
    pictures: str | Path | None = None,
    force: bool = False,
    trust: bool = False,
    model: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ReportResult:
    """Write what is known about a run as one HTML file that needs nothing else.

    Args:
        source: The folder of a run, which may be under way still, or a bundle.
        output: The page; by default ``report.html`` in the run, or ``NAME.report.html`` beside the
            bundle. An earlier report is replaced.
        bench: What ``st3fx bench -x`` wrote; by default ``bench.json`` in the run, if it is there.
        pictures: A folder for the same charts as PNG files; it is made.
        force: Replace files that no report wrote.
        trust: Run the code that the bundle names, and remember that for the folder.
        model: A SPEC to build the model from, instead of the one that the bundle names.
        progress: Called with the name of each stage as it begins.

    Returns:
        What was written, and which sections have something to show.

    Raises:
        ReportError: When there is neither run nor bundle, or a file cannot be written.
        BenchError: When the benchmark cannot be read.
        TrainError: When the run's settings cannot be read.
        BundleError: When the bundle is damaged, or its model was changed since.
    """
    report = progress or silent
    source = Path(source)
    target = Path(output) if output else default_output(source)
    folder = None if pictures is None else Path(pictures)
    # Now rather than after minutes of work.
    check_target(target, force=force)
    if folder is not None:
        check_folder(folder)
    facts = gather(source, bench, report, trust=trust, model=model)
    report("draw")
    sections = make_sections(facts)
    page = make_page(facts, sections).encode()
    files = {} if folder is None else _pictures(folder, sections)
    for path in files:
        if path.exists():
            check_target(path, force=force)
    write_all({**files, target: page})
    missing = {section.key: section.missing.replace("`", "") for section in sections}
    return ReportResult(target, len(page), facts.name, missing, tuple(files))


def default_output(source: Path) -> Path:
    """Where the report of a run or a bundle is written."""
    if is_run(source):
        return RunFolder(source).report
    # A bundle's folder holds a bundle and nothing else.
    resolved = source.resolve()
    return resolved.with_name(f"{resolved.stem}.report.html")


def _pictures(folder: Path, sections: tuple[Section, ...]) -> dict[Path, bytes]:
    charts = (chart for section in sections for chart in section.charts)
    return {folder / f"{chart.key}.png": to_png(chart, f"{GENERATOR} {VERSION}")
            for chart in charts}  # fmt: skip
