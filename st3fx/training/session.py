"""A run under way: what the loop works with, and what it does between steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from st3fx.core.shards import local
from st3fx.errors import StateError, TrainError
from st3fx.sparsifier import Sparsifier
from st3fx.training import gauge
from st3fx.training.average import Average
from st3fx.training.batches import Batches
from st3fx.training.folder import RunFolder
from st3fx.training.interrupt import Interrupt
from st3fx.training.log import Log
from st3fx.training.optim import learning_rate
from st3fx.training.report import Reporter, TrainRow
from st3fx.training.running import Running
from st3fx.training.settings import Settings


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
    """

    settings: Settings
    accelerator: Accelerator
    plain: nn.Module
    model: nn.Module
    optimizer: Any
    batches: Batches
    test: Any
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
        """Of the next step."""
        return learning_rate(self.settings, self.step, self.steps_per_epoch)

    def share(self, batch: int) -> float:
        """What to multiply a batch's loss by, so that a step has the mean over its batches.

        Accelerate divides by ``grad_accum_steps``; the last step of an epoch may have fewer.
        """
        group = self.settings.grad_accum_steps
        return group / min(group, self.batches.count - batch // group * group)

    def to_format(self, inputs: Any) -> Any:
        """Inputs in the memory format of the run."""
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
            wanted=gauge.target_now(self.sparsifier),
            threshold=gauge.level(self.sparsifier),
            rate=samples / max(1e-9, time.perf_counter() - started),
        )
        self.write(row.to_dict())
        self.report.train(row)
        self.start_clock()

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
            TrainError: Then.
        """
        tensors = (*self.plain.parameters(), *self.plain.buffers())
        finite = torch.stack([local(tensor).isfinite().all() for tensor in tensors]).all()
        if not bool(self.accelerator.gather(finite.reshape(1)).all()):
            raise self.lost("a weight")

    def lost(self, what: str) -> TrainError:
        """The error for a run that has left the numbers."""
        return TrainError(
            f"{what} is not a number any more at step {self.step}: try a smaller --lr, --clip-grad "
            f"or --warmup-epochs; {self.kept}"
        )

    @property
    def kept(self) -> str:
        """What is left when the run ends here."""
        if not self.folder.last.exists():
            return "nothing was saved yet"
        return f"the checkpoint of step {self.saved} is kept"

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
