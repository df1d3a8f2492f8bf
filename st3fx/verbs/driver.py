"""From a SPEC to a trained and folded model: the facade's verbs that train."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save as safetensors_bytes
from torch import nn

from st3fx.api import fold
from st3fx.core.run import run_of
from st3fx.data import Data, make_data
from st3fx.errors import EmptyLayerWarning, TrainError
from st3fx.files.atomic import replace_file
from st3fx.files.manifest import Recipe
from st3fx.loading.spec import parse_spec
from st3fx.training.batches import Batches
from st3fx.training.curves import draw_curves
from st3fx.training.finish import finish
from st3fx.training.folder import RunFolder
from st3fx.training.loop import train
from st3fx.training.machine import leave_group, make_accelerator, release
from st3fx.training.report import Reporter, Silent
from st3fx.training.result import TrainResult
from st3fx.training.saving import restore
from st3fx.training.session import Session
from st3fx.training.settings import Settings
from st3fx.training.start import make_session, outline, start_trackers, stop_trackers
from st3fx.verbs.trainee import bundle_recipe, data_settings, from_bundle, from_spec
from st3fx.verbs.workflow import save_bundle


@dataclass(frozen=True)
class Prepared:
    """A session with what its result is written from."""

    session: Session
    data: Data
    recipe: Recipe
    name: str


def train_spec(
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    force: bool = False,
    report: Reporter | None = None,
) -> TrainResult:
    """Train a model while its sparsity rises, and leave a bundle, folded weights and curves.

    Args:
        settings: Of the run; ``spec`` and ``output_dir`` are set.
        checkpoint: Of the same run, to go on from.
        force: Whether a run that is already in the folder is replaced.
        report: Who watches.

    Raises:
        TrainError: When the run cannot start or go on, or misses its sparsity.
        Interrupted: After a signal; the state was saved.
        St3fxError: As ``convert_spec``, ``load_bundle`` and ``make_data``.
    """
    folder = RunFolder(Path(str(settings.output_dir)))
    if checkpoint is None:
        folder.check_new(force=force)
    with _prepared(settings, folder, report or Silent()) as run:
        session, main = run.session, run.session.accelerator.is_main_process
        if checkpoint is not None:
            restore(session, checkpoint)
        else:
            _begin_anew(session, settings.spec)
            if main:
                folder.create(settings)
        session.accelerator.wait_for_everyone()
        start_trackers(session)
        session.report.begin(outline(session, run.name, run.data))
        started = time.perf_counter()
        try:
            with session.interrupt:
                train(session)
                session.report.stage("final")
                result, model = finish(session, run.name, time.perf_counter() - started)
        finally:
            session.report.end()
            stop_trackers(session)
        return _write(run, result, model) if main else result


def evaluate_spec(
    settings: Settings, *, checkpoint: Path | None = None, report: Reporter | None = None
) -> TrainResult:
    """Score a model, a bundle or a run's checkpoint on the test data. Writes nothing.

    Args:
        settings: Of the run, or of one that might be.
        checkpoint: Of the run.
        report: Who watches.

    Raises:
        St3fxError: As :func:`train_spec`.
    """
    folder = RunFolder(Path(str(settings.output_dir)))
    with _prepared(settings, folder, report or Silent()) as run:
        if checkpoint is not None:
            restore(run.session, checkpoint, read_only=True)
        run.session.report.stage("evaluate")
        result, _ = finish(run.session, run.name, 0.0, check=False)
        return dataclasses.replace(result, folder=None if checkpoint is None else folder.path)


@contextlib.contextmanager
def _prepared(settings: Settings, folder: RunFolder, report: Reporter) -> Iterator[Prepared]:
    accelerator = make_accelerator(settings, folder)
    report = report if accelerator.is_main_process else Silent()
    try:
        report.stage("data")
        bundle = bundle_recipe(settings.spec)
        data = make_data(data_settings(settings, bundle))
        batches = Batches(data, accelerator, settings.seed)
        steps = -(-batches.count // settings.grad_accum_steps) * settings.epochs
        model, recipe = (
            from_spec(settings, data, steps, report.stage)
            if bundle is None
            else from_bundle(settings, bundle, steps, report.stage)
        )
        report.stage("prepare")
        with warnings.catch_warnings():
            # The report names empty layers itself.
            warnings.simplefilter("ignore", EmptyLayerWarning)
            session = make_session(settings, accelerator, data, batches, model, folder, report)
            yield Prepared(session, data, recipe, parse_spec(recipe.spec).name)
    finally:
        leave_group(accelerator)
        release()


def _begin_anew(session: Session, spec: str) -> None:
    """Set the step of a bundle that was trained before to 0; its weights stay."""
    run = run_of(session.plain)
    if run.steps:
        session.report.note(f"{spec} was trained for {run.steps} steps: its schedule begins anew")
        run.begin_anew()


def _write(run: Prepared, result: TrainResult, model: nn.Module) -> TrainResult:
    """Bundle, folded weights and curves, in the main process."""
    session, folder = run.session, run.session.folder
    session.report.stage("write")
    model = model.to("cpu")
    save_bundle(model, run.recipe, folder.bundle, force=True)
    # Copies: safetensors refuses tied tensors, and the reader wants every key.
    folded = {key: value.clone().contiguous() for key, value in fold(model).state_dict().items()}
    content = safetensors_bytes(folded)
    try:
        replace_file(folder.folded, lambda file: file.write(content))
        draw_curves(session.log.rows(), result, folder.curves)
    except OSError as error:
        raise TrainError(f"cannot write {folder.path}: {error.strerror or error}") from error
    files = (folder.bundle, folder.folded, folder.curves, folder.last, folder.best)
    return dataclasses.replace(
        result,
        dense_bytes=sum(value.nbytes for value in folded.values()),
        files={str(f.relative_to(folder.path)): _bytes(f) for f in files if f.exists()},
        compressed_bytes=len(zlib.compress(content, 6)),
    )


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
