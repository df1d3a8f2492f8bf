"""A run under way: what the loop works with, how it is made, and what it does between steps.

With ``--ema`` it has an exponential moving average of the latent weights, which is thresholded like
the model itself.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from st3fx.data.base import Data
from st3fx.data.guarded import Bad
from st3fx.errors import StateError, TrainError, describe, exhausted
from st3fx.methods.base import ScheduledMethod
from st3fx.modules.copying import copied
from st3fx.modules.state import preserved, seed_everything
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.sparsity.shards import local
from st3fx.training import method
from st3fx.training.batches import Batches, EvalBatches
from st3fx.training.evaluate import call
from st3fx.training.folder import RunFolder
from st3fx.training.interrupt import Interrupt
from st3fx.training.log import Log, Running
from st3fx.training.machine import describe_device, prepare, settle_buckets
from st3fx.training.optim import learning_rate, make_optimizer, require_fit
from st3fx.training.origin import Origin
from st3fx.training.report import BadRow, Outline, Reporter, TrainRow
from st3fx.training.settings import Settings

GUESSING = 0.97
"""Share of ``ln(classes)``, the loss of a model that takes all classes for as likely, from which
on a model has learned nothing: one that guesses still moves its outputs a little."""

LEARNED = 0.7
"""Share of it below which it has."""


class Average:
    """A copy of a converted model whose latent weights and statistics are averages over steps.

    What is averaged are latent weights, never effective ones: an average of masks that differ would
    be dense. The thresholds follow from the averaged weights, at the sparsity of the step.

    Attributes:
        model: The copy. Before it is used, :meth:`threshold` must have been called.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the present weights of ``model``."""
        self.model = copied(model).requires_grad_(False).eval()
        self._source = model
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, 1 for the first.

        The decay is smaller at first, ``(1 + t) / (10 + t)``, so that the random weights of the
        start are soon forgotten.
        """
        decay = min(self._decay, (1 + step) / (10 + step))
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(self._source), strict=True):
            if value.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:  # counters: the step, batches that batch norm has seen
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)

    def threshold(self) -> Sparsifier:
        """Set the thresholds for the averaged weights; the copy's sparsifier."""
        sparsifier = Sparsifier(self.model)
        sparsifier.refresh()
        return sparsifier


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@dataclass
class Session:
    """What a run consists of, and how far it is.

    Attributes:
        settings: Of the run.
        accelerator: Of the run.
        plain: The converted model.
        model: The same, wrapped for this machine.
        optimizer: Prepared.
        batches: Training data.
        test: Test data, prepared.
        average: Averaged weights, if they are kept.
        folder: Where everything is written.
        report: Who watches; silent but in the main process.
        interrupt: The wish to stop.
        twin: For a sharded model, a whole one to put its weights into at the end.
        epoch: The epoch under way.
        batch: Its batches that were trained on.
        step: Optimizer steps so far.
        best: Best top-1 accuracy at the full sparsity.
        saved: Step of the newest checkpoint.
        empty: Sites without a weight that the user was told of.
        bad: Samples that were left out so far: of which data, and which.
        origin: What the run is made from.
        lowest: Loss in the log so far; ``None`` before it is read.
        has_collapsed: Whether the user was told that the model guesses again.
    """

    settings: Settings
    accelerator: Accelerator
    plain: nn.Module
    model: nn.Module
    optimizer: Any
    batches: Batches
    test: EvalBatches
    average: Average | None
    folder: RunFolder
    report: Reporter
    interrupt: Interrupt
    twin: nn.Module | None = None
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    saved: int = 0
    empty: set[str] = field(default_factory=set)
    bad: set[tuple[str, int]] = field(default_factory=set)
    origin: Origin = field(default_factory=dict)
    lowest: float | None = None
    has_collapsed: bool = False

    def __post_init__(self) -> None:
        self.sparsifier = Sparsifier(self.plain)
        self.log = Log(self.folder.log)
        self.running = Running(self.accelerator)
        self._since = (time.perf_counter(), 0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the last one may have fewer batches than the others."""
        return -(-self.batches.count // self.settings.grad_accum_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        total = self.steps_per_epoch * self.settings.epochs
        period = self.sparsifier.method.period(self.step, total)
        return learning_rate(self.settings, self.step, self.steps_per_epoch, period)

    def share(self, batch: int) -> float:
        """What to multiply a batch's loss by, so that a step has the mean over its batches.

        Accelerate divides by ``grad_accum_steps``; the last step of an epoch may have fewer.
        """
        group = self.settings.grad_accum_steps
        return group / min(group, self.batches.count - batch // group * group)

    def to_format(self, inputs: Any) -> Any:
        """Bring inputs to the memory format of the run."""
        if self.settings.channels_last and isinstance(inputs, Tensor) and inputs.dim() == 4:
            return inputs.to(memory_format=torch.channels_last)
        return inputs

    def is_due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps comes now."""
        return every is not None and self.step % every == 0

    def start_clock(self) -> None:
        """Begin to measure throughput: what was done before does not count."""
        self._since = (time.perf_counter(), self.running.samples)

    def log_row(self) -> None:
        """Read loss, accuracy and sparsity, and tell them. Nothing else waits for the device.

        Raises:
            TrainError: When the loss is not a number any more.
        """
        started, before = self._since
        samples = (self.running.samples - before) * self.accelerator.num_processes
        loss, accuracy = self.running.read()
        if not math.isfinite(loss):
            raise self.lost("the loss")
        row = TrainRow(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            loss=loss,
            accuracy=accuracy,
            lr=self.optimizer.param_groups[0]["lr"],
            sparsity=self.sparsifier.sparsity,
            wanted=method.target_now(self.sparsifier),
            threshold=method.level(self.sparsifier),
            rate=samples / max(1e-9, time.perf_counter() - started),
        )
        self._tell_of_collapse(loss)
        self.write(row.to_dict())
        self.report.train(row)
        self.start_clock()

    def _tell_of_collapse(self, loss: float) -> None:
        """Say once that the model guesses, after it had learned something."""
        if not self.accelerator.is_main_process or self.has_collapsed:
            return
        if self.lowest is None:
            losses = [row["loss"] for row in self.log.rows() if row["kind"] == "train"]
            self.lowest = min(losses, default=math.inf)
        guess = math.log(max(1, self.running.classes))
        if 0 < guess <= loss / GUESSING and self.lowest <= LEARNED * guess:
            self.has_collapsed = True
            self.report.note(
                f"the loss is {loss:.2f}, as of a model that guesses, and was {self.lowest:.2f} "
                f"before: the training has diverged by step {self.step}; stop it, and try "
                "--clip-grad 1, a smaller --lr, --warmup-epochs 1 or less sparsity"
            )
        self.lowest = min(self.lowest, loss)

    def follow(self) -> None:
        """After an optimizer step: the next thresholds, and the averages.

        Raises:
            TrainError: When weights are not numbers any more.
        """
        try:
            self.sparsifier.step()
        except StateError as error:
            raise self.lost("a weight") from error
        if self.average is not None:
            self.average.update(self.step)

    def require_finite(self) -> None:
        """Fail if a weight or a statistic is not a number any more. Waits for the device.

        Raises:
            TrainError: When one is not.
        """
        tensors = (*self.plain.parameters(), *self.plain.buffers())
        finite = torch.stack([local(tensor).isfinite().all() for tensor in tensors]).all()
        if not bool(self.accelerator.gather(finite.reshape(1)).all()):
            raise self.lost("a weight")

    def lost(self, what: str) -> TrainError:
        """The error for a run that has left the numbers."""
        return TrainError(
            f"{what} is not a number any more at step {self.step}: start anew with a smaller --lr, "
            f"--clip-grad 1 or --warmup-epochs 1, in another --output-dir; {self.kept}"
        )

    @property
    def kept(self) -> str:
        """What is left when the run ends here."""
        if not self.folder.last.exists():
            return "nothing was saved yet"
        return f"the checkpoint of step {self.saved} is kept"

    def leave_out(self, part: str, bad: Sequence[Bad]) -> None:
        """Note samples that were left out, once each, in the log.

        Args:
            part: ``train`` or ``test``.
            bad: Of this process.
        """
        for sample in bad:
            if (part, sample.index) not in self.bad:
                self.bad.add((part, sample.index))
                if self.accelerator.is_main_process:
                    self.log.append(BadRow(self.step, part, **asdict(sample)).to_dict())

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to the log and give its numbers to the trackers."""
        if self.accelerator.is_main_process:
            self.log.append(row)
        kind = row["kind"]
        values = {f"{kind}/{name}": value for name, value in row.items()
                  if isinstance(value, int | float) and name not in ("step", "epoch")}  # fmt: skip
        try:
            self.accelerator.log(values, step=self.step)
        except OSError as error:
            raise TrainError(f"cannot write the trackers' files: {error}; {self.kept}") from error


def make_session(
    settings: Settings,
    accelerator: Accelerator,
    data: Data,
    batches: Batches,
    model: nn.Module,
    folder: RunFolder,
    report: Reporter,
) -> Session:
    """A session at its beginning.

    Args:
        settings: Of the run.
        accelerator: Made for it.
        data: Made for it.
        batches: Of the data.
        model: Converted.
        folder: Where the run is written; nothing is written yet.
        report: Who watches.

    Raises:
        TrainError: When model and data do not fit, nor the learning rate and the method's cycles.
    """
    example = data.example(2)
    check_outputs(model, data, example)
    choose_kernels(settings)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    device = accelerator.device
    model.to(device)
    twin = copy.deepcopy(model) if settings.fsdp else None
    average = Average(model, settings.model_ema_decay) if settings.model_ema else None
    optimizer = make_optimizer(model, settings)
    if settings.torchcompile:
        # In place, so that names, hooks and state dict stay those of the plain model.
        model.compile()
    wrapped, prepared = prepare(accelerator, model, optimizer)
    settle_buckets(accelerator, wrapped, lambda: call(wrapped, send_to_device(example, device)))
    # From here on numbers are drawn for dropout and the like: others in each process.
    seed_everything(settings.seed + accelerator.process_index)
    session = Session(
        settings=settings,
        accelerator=accelerator,
        plain=model,
        model=wrapped,
        optimizer=prepared,
        batches=batches,
        test=EvalBatches(data, accelerator, skip=settings.on_bad_sample == "skip"),
        average=average,
        folder=folder,
        report=report,
        interrupt=Interrupt(),
        twin=twin,
    )
    require_fit(settings, session.sparsifier.method, session.steps_per_epoch)
    return session


def choose_kernels(settings: Settings) -> None:
    """The same kernels in each start, unless speed is asked for: a run must be able to go on."""
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    torch.backends.cudnn.deterministic = not settings.cudnn_benchmark


@torch.no_grad()
def check_outputs(model: nn.Module, data: Data, example: Any) -> None:
    """Fail if the model has fewer outputs than the data has classes.

    Args:
        model: On the CPU.
        data: With its classes.
        example: Inputs of some of its samples.

    Raises:
        TrainError: Then, or when it refuses the data, or does not give logits.
    """
    try:
        with preserved(model):
            logits = call(model.eval(), example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if exhausted(error):
            raise
        raise TrainError(
            f"{type(model).__name__} does not take what {data.name} gives: {describe(error)}; "
            "--channels, --image-size or another --data change that"
        ) from error
    classes = data.num_classes
    if classes is not None and logits.shape[1] < classes:
        raise TrainError(
            f"{type(model).__name__} has {logits.shape[1]} outputs, and {data.name} has {classes} "
            "classes: give the model as many outputs"
        )


def outline(session: Session, name: str, data: Data) -> Outline:
    """What the session is going to do."""
    sparsifier = session.sparsifier
    plan = sparsifier.plan
    return Outline(
        name=name,
        data=data.name,
        folder=session.folder.path,
        method=plan.method_text,
        target=sparsifier.target,
        budget=getattr(sparsifier.method, "budget", "weights"),
        epochs=session.settings.epochs,
        steps=session.steps_per_epoch * session.settings.epochs,
        done=session.step,
        sites=len(plan.sites),
        site_parameters=plan.numel,
        parameters=plan.total_parameters,
        device=describe_device(session.accelerator),
        draw=sparsifier.method.schedule.draw
        if isinstance(sparsifier.method, ScheduledMethod)
        else None,
    )


def start_trackers(session: Session) -> None:
    """Open the trackers; TensorBoard forgets what was written after the step of the session."""
    session.accelerator.init_trackers(
        "tensorboard",
        init_kwargs={"tensorboard": {"purge_step": session.step + 1}},
    )
    for name in session.settings.log_with:
        session.accelerator.get_tracker(name).store_init_configuration(session.settings.to_dict())


def stop_trackers(session: Session) -> None:
    """Close the trackers; on a full disk that fails, which must not hide how the run ended."""
    try:
        session.accelerator.end_training()
    except OSError as error:
        session.report.note(f"the trackers' files are incomplete: {error}")
