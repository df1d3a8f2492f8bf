"""From the files of a run or a bundle to the facts of its report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from st3fx.bench.result import BenchResult, read_result
from st3fx.errors import ReportError
from st3fx.files.bundle import MANIFEST
from st3fx.loading.spec import parse_spec
from st3fx.report.commands import convert_command, train_command
from st3fx.report.facts import Facts, TrainingFacts
from st3fx.training.folder import RunFolder
from st3fx.training.log import Log
from st3fx.training.settings import from_dict
from st3fx.training.toml_text import read_toml
from st3fx.verbs.model_facts import measure


def is_run(source: Path) -> bool:
    """Whether a folder is that of a run."""
    return RunFolder(source).settings.is_file()


def gather(source: Path, bench: str | Path | None, progress: Callable[[str], None]) -> Facts:
    """All that is known about a run or a bundle.

    Args:
        source: The folder of a run, or a bundle.
        bench: A benchmark's file; ``None`` for the one in the run.
        progress: Called with the name of each stage as it begins.

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
    again = (measured.command,) if measured is not None else ()
    report = ["st3fx", "report", str(source), *(["--bench", str(bench)] if bench else [])]
    if not found:
        model = measure(source, (), progress)
        commands = (convert_command(model.recipe, source), *again, shlex.join(report))
        name = parse_spec(model.recipe.spec).name
        return Facts(name, source, False, model, None, measured, commands)
    run, bundle = _training(RunFolder(source)), RunFolder(source).bundle
    trained = measure(bundle, _files(source), progress) if bundle.is_dir() else None
    spec = run.settings.spec if trained is None else trained.recipe.spec
    name = Path(spec).stem if Path(spec).is_dir() else parse_spec(spec).name
    commands = (train_command(run.settings), *again, shlex.join(report))
    return Facts(name, source, True, trained, run, measured, commands)


def _training(folder: RunFolder) -> TrainingFacts:
    settings = from_dict(read_toml(folder.settings), str(folder.settings))
    try:
        rows = tuple(Log(folder.log).rows())
    except (OSError, ValueError) as error:
        raise ReportError(f"{folder.log} cannot be read ({error}): put it back") from error
    return TrainingFacts(settings, rows)


def _bench(source: Path, bench: str | Path | None) -> BenchResult | None:
    if bench is not None:
        return read_result(bench)
    found = RunFolder(source).bench
    return read_result(found) if is_run(source) and found.is_file() else None


def _files(run: Path) -> tuple[Path, ...]:
    """Weights and graphs in the folder of a run."""
    patterns = ("*.safetensors", "*.st3w", "*.onnx")
    return tuple(sorted(path for pattern in patterns for path in run.glob(pattern)))
