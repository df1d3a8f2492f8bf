"""From a SPEC to a trained and folded model: the facade's verbs that train.

The model that a run trains: from a SPEC, with the data's shape, or from a bundle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from st3fx import methods
from st3fx.api import fold
from st3fx.commands.convert import convert_spec, restored, save_bundle
from st3fx.data import Data, DataSettings, make_data
from st3fx.errors import EmptyLayerWarning, InputError, TrainError
from st3fx.files.atomic import replace_file
from st3fx.files.bundle import MANIFEST, Bundle, read_bundle
from st3fx.files.manifest import Recipe
from st3fx.files.tensor_file import to_bytes
from st3fx.loading.spec import parse_spec
from st3fx.loading.trust import USER, Permit, remember
from st3fx.methods.base import ScheduledMethod
from st3fx.methods.targets import check_targets, named_targets
from st3fx.modules.marks import change_conversion, conversion_of
from st3fx.plan.settings import NAMES as CONVERSION_SETTINGS
from st3fx.report.facts import TrainingFacts
from st3fx.report.png import run_picture
from st3fx.sparsifier.run import run_of
from st3fx.training import memory
from st3fx.training.batches import Batches
from st3fx.training.folder import RunFolder
from st3fx.training.loop import finish, train
from st3fx.training.machine import leave_group, make_accelerator, release, require_precision
from st3fx.training.method import adjusted, make_method
from st3fx.training.origin import origin_of
from st3fx.training.report import Reporter, Silent, TrainResult
from st3fx.training.saving import in_main, restore
from st3fx.training.session import Session, make_session, outline, start_trackers, stop_trackers
from st3fx.training.settings import Settings
from st3fx.version import VERSION


@dataclass(frozen=True)
class Code:
    """Whose code a training runs.

    Attributes:
        spec: On whose word that of the SPEC runs.
        data: On whose word that of the user's own loaders runs.
        trust: Whether that runs which a bundle names.
        model: A SPEC to build the model from, instead of the one that a run or a bundle names.
    """

    spec: Permit = USER
    data: Permit = USER
    trust: bool = False
    model: str | None = None


def data_settings(settings: Settings, bundle: Bundle | None, permit: Permit = USER) -> DataSettings:
    """Which data, in a form that the model takes, and on whose word the user's own loaders run.

    Raises:
        DataError: For a number outside its range.
    """
    spec = parse_spec(settings.spec if bundle is None else bundle.manifest.recipe.spec)
    # torchvision's models take three channels and nothing else: grey images are repeated.
    channels = settings.channels or (3 if spec.kind == "torchvision" else None)
    return DataSettings(
        name=settings.data,
        path=settings.data_path,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        workers=settings.workers,
        augment=settings.augment,
        channels=channels,
        image_size=settings.image_size,
        seed=settings.seed,
        permit=permit,
    )


def from_spec(
    settings: Settings,
    data: Data,
    steps: int,
    progress: Callable[[str], None],
    code: Code | None = None,
) -> tuple[nn.Module, Recipe]:
    """A new model, with as many outputs as the data has classes where it is a library's.

    Args:
        settings: Of the run.
        data: Gives the example input, unless the settings do.
        steps: Optimizer steps of the run.
        progress: Called with the name of each stage as it begins.
        code: On whose word the model's own code runs.

    Returns:
        The converted model, and how it was converted.

    Raises:
        TrainError: When the model does not take what the data gives.
        St3fxError: As ``convert_spec``.
    """
    code = code or Code()
    inputs = settings.inputs or _as_text(data.example(2))
    shape = data.input_shape if data.input_shape and len(data.input_shape) == 3 else None
    recipe = Recipe(
        spec=code.model or settings.spec,
        method=methods.to_dict(make_method(settings)),
        inputs=inputs,
        total_steps=steps,
        **settings.of_conversion(),
        seed=settings.seed,
        num_classes=data.num_classes,
        in_channels=shape[0] if shape else None,
        image_size=shape[-1] if shape else None,
        update_every=settings.update_every,
    )
    try:
        permit = code.spec if code.model is None else USER
        converted = convert_spec(recipe, weights=settings.weights, progress=progress, permit=permit)
    except InputError as error:
        raise TrainError(
            f"{error}; {data.name} gives inputs {' and '.join(inputs or ())}, and --channels, "
            "--image-size or another --data change them"
        ) from error
    return converted.model, converted.recipe


def _as_text(example: Any) -> tuple[str, ...] | None:
    """``2x1x28x28:float32`` for each positional argument; ``None`` for keyword arguments."""
    values = example if isinstance(example, tuple | list) else (example,)
    if not all(isinstance(value, Tensor) for value in values):
        return None
    return tuple(
        f"{'x'.join(map(str, v.shape))}:{str(v.dtype).removeprefix('torch.')}" for v in values
    )


def from_bundle(
    settings: Settings,
    bundle: Bundle,
    steps: int,
    progress: Callable[[str], None],
    code: Code | None = None,
) -> tuple[nn.Module, Recipe]:
    """The model of a bundle, for a run of its own length and sparsity.

    Raises:
        TrainError: When settings contradict the bundle's conversion.
        BundleError: As ``load_bundle``.
    """
    recipe = bundle.manifest.recipe
    plain = Settings()
    for name in ("weights", "inputs", *CONVERSION_SETTINGS):
        if getattr(settings, name) != getattr(plain, name):
            raise TrainError(
                f"{settings.spec} is a bundle, which has its own {name}: leave it out, or convert "
                "the model again"
            )
    progress("load")
    method = adjusted(methods.from_dict(recipe.method), settings)
    if isinstance(method, ScheduledMethod):
        check_targets(method, bundle.manifest.plan.sites)
    code = code or Code()
    built = restored(bundle, trust=code.trust, model=code.model)
    model, recipe = built.model, built.recipe if code.model is not None else recipe
    change_conversion(
        model,
        method=method,
        plan=dataclasses.replace(
            conversion_of(model).plan,
            target=method.target,
            targets=named_targets(method, conversion_of(model).plan.sites),
        ),
        total_steps=steps,
        update_every=settings.update_every,
    )
    return model, dataclasses.replace(
        recipe,
        method=methods.to_dict(method),
        total_steps=steps,
        update_every=settings.update_every,
    )


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
    code: Code | None = None,
    accept_changes: bool = False,
) -> TrainResult:
    """Train a model while its sparsity rises, and leave a bundle, folded weights and curves.

    Args:
        settings: Of the run; ``spec`` and ``output_dir`` are set.
        checkpoint: Of the same run, to go on from.
        force: Whether a run that is already in the folder is replaced.
        report: Who watches.
        code: On whose word code runs that the settings name; by default the user's.
        accept_changes: Whether a run goes on though its model's source, its data, its log or
            its settings were changed since the checkpoint.

    Raises:
        TrainError: When the run cannot start or go on, or misses its sparsity.
        Interrupted: After a signal; the state was saved.
        St3fxError: As ``convert_spec``, ``load_bundle`` and ``make_data``.
    """
    folder = RunFolder(Path(str(settings.output_dir)))
    if checkpoint is None:
        folder.check_new(force=force)
    else:
        folder.check_free()
    with (
        _prepared(settings, folder, report or Silent(), code or Code()) as run,
        contextlib.ExitStack() as held,
    ):
        session, main = run.session, run.session.accelerator.is_main_process

        def begin() -> None:
            held.enter_context(folder.locked(session.report.note))
            if checkpoint is None:
                folder.create(settings)
                remember(folder.path.resolve())
            elif accept_changes:
                folder.accept(settings)
            else:
                folder.keep(settings)

        require_precision(session.plain)
        in_main(session.accelerator, begin)
        if checkpoint is not None:
            restore(session, checkpoint, accepted=accept_changes)
        else:
            _begin_anew(session, settings.spec)
        _warn_of_memory(session, run.data)
        start_trackers(session)
        session.report.begin(outline(session, run.name, run.data))
        started = time.perf_counter()
        try:
            with session.interrupt:
                train(session)
                session.report.stage("final")
                result, model, missed = finish(session, run.name, time.perf_counter() - started)
        finally:
            session.report.end()
            stop_trackers(session)
        result = _write(run, result, model) if main else result
        if missed is not None:  # what was trained is kept
            raise TrainError(f"{missed}; the bundle is {folder.bundle} all the same")
        return result


def evaluate_spec(
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    report: Reporter | None = None,
    code: Code | None = None,
) -> TrainResult:
    """Score a model, a bundle or a run's checkpoint on the test data. Writes nothing.

    Args:
        settings: Of the run, or of one that might be.
        checkpoint: Of the run.
        report: Who watches.
        code: On whose word code runs that the settings name; by default the user's.

    Raises:
        St3fxError: As :func:`train_spec`.
    """
    folder = RunFolder(Path(str(settings.output_dir)))
    with _prepared(settings, folder, report or Silent(), code or Code()) as run:
        if checkpoint is not None:
            restore(run.session, checkpoint, read_only=True)
        run.session.report.stage("evaluate")
        result, *_ = finish(run.session, run.name, 0.0, check=False)
        return dataclasses.replace(result, folder=None if checkpoint is None else folder.path)


@contextlib.contextmanager
def _prepared(
    settings: Settings, folder: RunFolder, report: Reporter, code: Code
) -> Iterator[Prepared]:
    accelerator = make_accelerator(settings, folder)
    report = report if accelerator.is_main_process else Silent()
    try:
        report.stage("data")
        is_bundle = (Path(settings.spec) / MANIFEST).is_file()
        bundle = read_bundle(settings.spec) if is_bundle else None
        data = make_data(data_settings(settings, bundle, code.data))
        skip = settings.on_bad_sample == "skip"
        batches = Batches(data, accelerator, settings.seed, skip=skip)
        steps = -(-batches.count // settings.grad_accum_steps) * settings.epochs
        model, recipe = (
            from_spec(settings, data, steps, report.stage, code)
            if bundle is None
            else from_bundle(settings, bundle, steps, report.stage, code)
        )
        report.stage("prepare")
        with warnings.catch_warnings():
            # The report names empty layers itself.
            warnings.simplefilter("ignore", EmptyLayerWarning)
            session = make_session(settings, accelerator, data, batches, model, folder, report)
            session.origin = origin_of(model, recipe.source.path if recipe.source else None, data)
            yield Prepared(session, data, recipe, parse_spec(recipe.spec).name)
    finally:
        leave_group(accelerator)
        release()


def _warn_of_memory(session: Session, data: Data) -> None:
    """Say so now where a training will not fit, rather than when it is killed hours later."""
    free = memory.available(session.accelerator.device)
    wanted = None if free is None else memory.needed(session.plain, data, session.settings)
    said = None if free is None or wanted is None else wanted.warning(free)
    if said is not None:
        session.report.note(said)


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
    folder.remove_results()  # they were made of the bundle before
    save_bundle(model, run.recipe, folder.bundle, force=True)
    # Copies: safetensors refuses tied tensors, and the reader wants every key.
    folded = {key: value.clone().contiguous() for key, value in fold(model).state_dict().items()}
    content = to_bytes(folded)
    sizes = {site.name: site.numel for site in session.sparsifier.plan.sites}
    facts = TrainingFacts(session.settings, tuple(session.log.rows()))
    picture = run_picture(result, facts, sizes, f"st3fx train {VERSION}")
    try:
        replace_file(folder.folded, lambda file: file.write(content))
        replace_file(folder.curves, lambda file: file.write(picture))
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
