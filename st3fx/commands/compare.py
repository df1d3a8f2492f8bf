"""Runs beside each other: the facade's verb that compares.

Each run is read as far as it can be: what is damaged or missing is a sentence on the page.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from st3fx.bench.bench_result import BenchResult, read_result
from st3fx.commands.progress import silent
from st3fx.commands.report import files_of, is_run, measure, name_of, training_of
from st3fx.errors import ReportError, St3fxError, quoted
from st3fx.files.bundle import MANIFEST
from st3fx.report.comparison import Compared, CompareResult, Comparison, Over, labels
from st3fx.report.comparison_sections import about, heading, headline, make_sections
from st3fx.report.facts import Facts, TrainingFacts
from st3fx.report.page import check_folder, check_target, make_document, write_all
from st3fx.report.png import to_png
from st3fx.training.folder import RunFolder
from st3fx.version import VERSION

GENERATOR = "st3fx compare"
"""Stands at the beginning of what ``st3fx compare`` wrote, which it may replace."""


def compare(
    runs: Sequence[str | Path],
    output: str | Path = "compare.html",
    *,
    over: Over = "epoch",
    pictures: str | Path | None = None,
    force: bool = False,
    trust: bool = False,
    model: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> CompareResult:
    """Write runs beside each other as one HTML file that needs nothing else.

    Args:
        runs: Folders of runs, under way or ended, or bundles; two or more. One that is given twice
            counts once.
        output: The page. An earlier comparison is replaced.
        over: Whether curves are drawn over epochs or over optimizer steps.
        pictures: A folder for the same charts as PNG files; it is made.
        force: Replace files that no comparison wrote.
        trust: Run the code that bundles name, and remember that for their folders.
        model: A SPEC to build all models from, instead of those that the bundles name.
        progress: Called with the name of each run as its turn comes.

    Returns:
        What was written, and what each run came to.

    Raises:
        ReportError: When fewer than two runs are given, none of them can be read, or a file cannot
            be written.
    """
    report = progress or silent
    target = check_target(Path(output), force=force, generator=GENERATOR, noun="comparison")
    folder = None if pictures is None else check_folder(Path(pictures))
    found = gather(runs, over, report, trust=trust, model=model)
    report("draw")
    sections = make_sections(found)
    page = make_document(
        kind="Comparison of sparse trainings", title=f"{heading(found)}: comparison",
        name=heading(found), about=about(found), headline=headline(found), sections=sections,
        generator=GENERATOR,
    ).encode()  # fmt: skip
    charts = [chart for section in sections for chart in section.charts] if folder else []
    software = f"{GENERATOR} {VERSION}"
    files = {(folder or target) / f"{chart.key}.png": to_png(chart, software) for chart in charts}
    for path in filter(Path.exists, files):
        check_target(path, force=force, generator=GENERATOR, noun="comparison")
    write_all({**files, target: page})
    return CompareResult(target, len(page), found, tuple(files))


def gather(
    runs: Sequence[str | Path],
    over: Over,
    progress: Callable[[str], None],
    *,
    trust: bool = False,
    model: str | None = None,
) -> Comparison:
    """All that is known about runs.

    Args:
        runs: As for :func:`compare`.
        over: As for :func:`compare`.
        progress: As for :func:`compare`.
        trust: As for :func:`compare`.
        model: As for :func:`compare`.

    Raises:
        ReportError: As :func:`compare`.
    """
    given = {Path(run).resolve(): Path(run) for run in reversed(runs)}
    paths = list(reversed(given))
    if len(paths) < 2:
        raise ReportError("there is nothing to compare: give two runs or more, or bundles")
    compared, left_out = [], {}
    for path, label in zip(paths, labels(paths), strict=True):
        progress(f"reading {label}")
        try:
            facts, notes = _read(given[path], trust=trust, model=model)
        except St3fxError as error:
            left_out[str(given[path])] = str(error)
        else:
            compared.append(Compared(label, facts, notes))
    if not compared:
        first, reason = next(iter(left_out.items()))
        raise ReportError(f"none of the {len(paths)} can be compared; {first}: {reason}")
    return Comparison(tuple(compared), left_out, over)


def _read(source: Path, *, trust: bool, model: str | None) -> tuple[Facts, tuple[str, ...]]:
    """A run or a bundle, as far as it can be read, and what could not.

    Raises:
        St3fxError: When nothing of it can.
    """
    run = is_run(source)
    if not run and not (source / MANIFEST).is_file():
        raise ReportError("it is no run and no bundle")
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        training = _training(RunFolder(source), notes) if run else None
        bundle = RunFolder(source).bundle if run else source
        trained = None
        if bundle.is_dir():
            files = files_of(source) if run else ()
            try:
                trained = measure(bundle, files, silent, trust=trust, model=model)
            except St3fxError as error:
                if not run:
                    raise
                notes.append(f"its layers are not known: {error}")
        measured = _bench(RunFolder(source).bench, notes) if run else None
    notes += dict.fromkeys(str(one.message) for one in said if _is_ours(one.category))
    if training is not None and not any(note.startswith(_NO_LOG) for note in notes):
        notes += _unfinished(source, training)
    if trained is not None and trained.uncounted:
        notes.append(f"its multiplications are not counted: {trained.uncounted}")
    spec = trained.recipe.spec if trained else training.settings.spec if training else ""
    return Facts(name_of(spec), source, run, trained, training, measured, ()), tuple(notes)


_NO_LOG = "its log cannot be read"


def _is_ours(category: type[Warning]) -> bool:
    return category.__module__ == St3fxError.__module__


def _training(folder: RunFolder, notes: list[str]) -> TrainingFacts:
    """Settings and log; a log that is damaged leaves the settings.

    Raises:
        TrainError: When the settings are damaged.
    """
    try:
        return training_of(folder)
    except St3fxError as error:
        settings = training_of(RunFolder(folder.path), log=False).settings
        notes.append(f"{_NO_LOG}: {error}")
        return TrainingFacts(settings, ())


def _bench(path: Path, notes: list[str]) -> BenchResult | None:
    if not path.exists():
        return None
    try:
        return read_result(path)
    except St3fxError as error:
        notes.append(f"its benchmark cannot be read: {error}")
        return None


def _unfinished(source: Path, training: TrainingFacts) -> tuple[str, ...]:
    """Whether a run has not ended, in a sentence."""
    done = next((row["epoch"] for row in reversed(training.rows) if "epoch" in row), None)
    epochs = training.settings.epochs
    if done is None:
        said = "its log has no rows"
    elif done < epochs:
        said = f"it is not finished: {done:.3g} of {epochs} epochs are done"
    elif not RunFolder(source).bundle.is_dir():
        said = "its model is not written yet"
    else:
        return ()
    return (f"{said}; st3fx train --resume {quoted(source)} goes on with it",)
