"""What a sweep takes to other sparsities: a trained model with its data, scored as in training.

One importer: ``sweep`` says what is asked of each sparsity, this how one is set and scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from st3fx import methods
from st3fx.commands.models import Request, of_run
from st3fx.data import Data
from st3fx.errors import MethodError, StateError, SweepError
from st3fx.files.bundle import MANIFEST, Bundle, read_bundle
from st3fx.loading.spec import parse_spec
from st3fx.loading.trust import USER, Permit
from st3fx.methods.base import ScheduledMethod
from st3fx.modules.state import preserved_rng, seed_everything
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training.batches import Batches, EvalBatches
from st3fx.training.evaluate import Scores, evaluate, recalibrated
from st3fx.training.folder import RunFolder
from st3fx.training.machine import leave_group, make_accelerator, release
from st3fx.training.session import choose_kernels
from st3fx.training.settings import Settings, read_run


@dataclass(frozen=True)
class Source:
    """What a user names, and the data that belongs to it.

    Attributes:
        bundle: The trained model.
        run: The run that it is from, if it is one's.
        settings: Of the run, or of a training that might be: they say which data.
        permit: On whose word code of the data runs.
        named: As the user named it.
    """

    bundle: Bundle
    run: RunFolder | None
    settings: Settings
    permit: Permit
    named: str

    @property
    def page(self) -> Path:
        """Where the page is written if nothing is said."""
        if self.run is not None:
            return self.run.sweep
        resolved = self.bundle.directory.resolve()
        return resolved.with_name(f"{resolved.stem}.sweep.html")

    @property
    def name(self) -> str:
        """Of the model."""
        return parse_spec(self.bundle.manifest.recipe.spec).name


def find(source: str | Path, data: Mapping[str, Any] | None = None, *, trust: bool) -> Source:
    """The bundle of a run, or a bundle, with its data.

    Args:
        source: The folder of a run, or a bundle.
        data: Settings of a training that say which data, as far as they are given.
        trust: Run the code of a run's own loaders.

    Raises:
        SweepError: When there is neither run nor bundle, the run has not ended, no data is known,
            or the model's method has one sparsity.
    """
    request, run = of_run(Request(str(source)), SweepError)
    path, data = Path(request.spec), dict(data or {})
    if not (path / MANIFEST).is_file():
        raise SweepError(
            f"{source} is no run and no bundle: give the --output-dir of st3fx train, or what "
            "st3fx convert wrote"
        )
    bundle = read_bundle(path)
    around = run or RunFolder(path.resolve().parent)
    of_a_run = around.settings.is_file() and around.bundle.resolve() == path.resolve()
    if of_a_run:
        run = around
        settings = read_run(around.settings)
        settings = dataclasses.replace(settings, **data)
    elif "data" in data:
        settings = Settings(spec=str(path), seed=bundle.manifest.recipe.seed, **data)
    else:
        raise SweepError(
            f"no data for {source}: name the run that it is from, or give --data, which "
            "accuracy needs"
        )
    _require_settable(str(source), methods.from_dict(bundle.manifest.recipe.method))
    permit = USER if "data" in data else Permit(around.path.resolve(), trust)
    return Source(bundle, run, settings, permit, str(source))


def _require_settable(source: str, method: methods.Method) -> None:
    """Refuse a model whose sparsity follows from what it has learned."""
    if isinstance(method, ScheduledMethod):
        return
    raise SweepError(
        f"{source} was trained by {method.name}, which learns its thresholds, so that it has one "
        "sparsity: train it by a method with a schedule, e.g. --method st3 --draw-sparsity "
        "0.5,0.95, or once for each sparsity"
    )


def require_reachable(
    source: str, method: ScheduledMethod, own: float, sparsities: Sequence[float]
) -> None:
    """Refuse sparsities below that of a model whose method keeps what it has pruned.

    Raises:
        SweepError: Then.
    """
    lower = [value for value in sparsities if value < own - 1e-9]
    if method.keeps and lower:
        raise SweepError(
            f"{source} was trained by {method.name}, which keeps what it has pruned: sparsity "
            f"{lower[0]:g} is below its own, {own:g}; give larger ones"
        )


class Scorer:
    """Sets sparsities of a model and scores it, as its training did."""

    def __init__(self, source: Source, data: Data, model: nn.Module, calibrate: int | None) -> None:
        """Choose the machine, and prepare the data.

        Args:
            source: Of the model.
            data: Its data.
            model: Converted, and driven by nothing else.
            calibrate: Training batches for the statistics of batch norm; ``None``: as many as in
                training, none: those of training.
        """
        settings, run = source.settings, source.run or RunFolder(Path())
        own = dataclasses.replace(settings, fsdp=False, log_with=())
        self._settings = settings
        self._accelerator = make_accelerator(own, run)
        choose_kernels(settings)
        skip = settings.on_bad_sample == "skip"
        self._batches = Batches(data, self._accelerator, settings.seed, skip=skip)
        self._test = EvalBatches(data, self._accelerator, skip=skip)
        self.model = model.to(self._accelerator.device)
        if settings.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.sparsifier = Sparsifier(self.model)
        norms = any(isinstance(m, _NormBase) and m.track_running_stats
                    for m in model.modules())  # fmt: skip
        wanted = settings.bn_recalibrate if calibrate is None else calibrate
        self.calibration = wanted if norms else 0

    def set(self, sparsity: float) -> None:
        """Set the thresholds, and batch norm's statistics for them.

        Raises:
            SweepError: When the method or its masks do not allow it.
        """
        try:
            self.sparsifier.set_sparsity(sparsity)
        except StateError as error:
            if not self.sparsifier.frozen:
                raise
            raise SweepError(
                f"{error}: take a bundle from before Sparsifier.freeze(), or train without it (of "
                "probmask by --method-option fixed=0)"
            ) from error
        except MethodError as error:
            raise SweepError(str(error)) from error
        if self.calibration:
            # Those of the last epoch, as at the end of a training.
            batches = self._batches.sample(self._settings.epochs - 1, self.calibration)
            with preserved_rng(), recalibrated(self.model, batches, self._to_format, keep=True):
                pass

    def score(self) -> Scores:
        """Score the model on the test data: the same draws for each sparsity if it has any."""
        with preserved_rng():
            seed_everything(self._settings.seed)
            return evaluate(self.model, self._test, self._accelerator, to_format=self._to_format)

    def top1_of(self, predict: Callable[..., Any]) -> float:
        """Share of the test samples that a function gets right; it takes and gives CPU tensors."""
        right = count = 0
        for inputs, targets in self._test:
            given = on_cpu(inputs)
            if isinstance(given, dict):
                outputs = predict(**given)
            else:
                outputs = predict(*given) if isinstance(given, tuple | list) else predict(given)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            labels = targets if targets.dtype == torch.int64 else targets.argmax(1)
            right += int((logits.argmax(1) == labels.cpu()).sum())
            count += labels.numel()
        return right / count

    def _to_format(self, inputs: Any) -> Any:
        if self._settings.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
            return inputs.to(memory_format=torch.channels_last)
        return inputs

    def close(self) -> None:
        """Give the machine back."""
        leave_group(self._accelerator)
        release()


def on_cpu(inputs: Any) -> Any:
    """What a model is called with, on the CPU."""
    if isinstance(inputs, Tensor):
        return inputs.cpu()
    if isinstance(inputs, Mapping):
        return {key: on_cpu(value) for key, value in inputs.items()}
    return tuple(map(on_cpu, inputs)) if isinstance(inputs, tuple | list) else inputs
