"""What a file of integers is trained on: a user's batches, or the data of a run.

The latter is told and logged as training is: rows in ``finetune.jsonl`` of the run's folder, and a
display of steps, loss and speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from st3fx.data import Data
from st3fx.errors import QuantizeError
from st3fx.quantization.calibrate import Feed
from st3fx.quantization.finetune import Batch, Course, Lessons, Tuning
from st3fx.quantization.trainable import Trainable
from st3fx.training.batches import Stream
from st3fx.training.folder import RunFolder
from st3fx.training.log import Log, Running
from st3fx.training.machine import describe_device, leave_group, make_accelerator, release
from st3fx.training.report import Outline, Reporter, TrainRow
from st3fx.training.settings import Settings

LOG = "finetune.jsonl"
"""In a run's folder: the rows of its last finetuning."""

Feeds = Callable[[Any, int], Iterator[tuple[slice, Feed]]]
"""What a model is called with, and samples at most -> the inputs of its file, and their places."""


def tuning_of(
    model: nn.Module, course: Course | None, lessons: Callable[[Course], Lessons]
) -> Tuning | None:
    """By what the file of a model is trained, if it is.

    Args:
        model: Folded.
        course: How long and how fast.
        lessons: Prepares the data when it comes to that.
    """
    if course is None:
        return None
    names = tuple(name for name, _ in model.named_parameters())
    return Tuning(course, names, lambda: lessons(course))


class Given:
    """Batches in memory.

    Attributes:
        device: A GPU where there is one.
        count: How many there are.
    """

    def __init__(self, batches: Sequence[Any], feeds: Feeds, size: int, seed: int) -> None:
        """Take batches apart.

        Args:
            batches: What the model is called with.
            feeds: Gives the inputs of its file.
            size: Samples of a step at most.
            seed: Of their order.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._feeds = [feed for batch in batches for _, feed in feeds(batch, size)]
        self._seed = seed
        self.count = len(self._feeds)

    def epoch(self, number: int) -> Iterator[Batch]:
        """All of them, in an order that seed and number fix."""
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + number)
        for place in torch.randperm(self.count, generator=generator).tolist():
            yield Batch(_tensors(self._feeds[place], self.device))

    def begin(self, student: Trainable) -> None:
        """Tell nobody."""

    def seen(
        self, step: int, lr: float, loss: Tensor, outputs: Mapping[str, Tensor], batch: Batch
    ) -> None:
        """Tell nobody."""

    def end(self) -> None:
        """Tell nobody."""


def _tensors(feed: Feed, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device) for array in feed.values())


class OfRun:
    """The training samples of a run, shuffled and augmented as its training has them.

    Attributes:
        device: That of training.
        count: Batches of an epoch.
    """

    def __init__(
        self,
        settings: Settings,
        data: Data,
        feeds: Feeds,
        run: RunFolder | None,
        report: Reporter,
        *,
        name: str,
        epochs: int,
        parts: int,
    ) -> None:
        """Choose the machine.

        Args:
            settings: Of the training: batches, seed, intervals of the log.
            data: Its samples.
            feeds: Gives the inputs of the file.
            run: Where the log is written; ``None`` for nowhere.
            report: Who watches.
            name: Of the model.
            epochs: Passes over the data.
            parts: Steps for each batch of the loader, where the file's own batch is smaller.

        Raises:
            QuantizeError: When the loader has no length, or no batch.
        """
        self._data, self._feeds, self._report = data, feeds, report
        self._settings, self._name, self._epochs = settings, name, epochs
        try:
            self.count = parts * len(data.train)
        except TypeError as error:
            raise QuantizeError(
                f"{data.name}: the training loader has no length, on which the learning rate "
                "rests: give its data set __len__"
            ) from error
        self._folder = run or RunFolder(Path())
        self._log = None if run is None else Log(run.path / LOG)
        self._accelerator = make_accelerator(settings, self._folder)
        self.device = self._accelerator.device

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch of the training."""
        stream = Stream(self._settings.seed, number)
        self._data.set_epoch(number)
        with stream.active():
            batches = iter(self._data.train)
        while True:
            with stream.active():
                batch = next(batches, None)
            if batch is None:
                return
            inputs, targets = batch
            for part, feed in self._feeds(inputs, len(targets)):
                yield Batch(_tensors(feed, self.device), targets[part].to(self.device))

    def begin(self, student: Trainable) -> None:
        """Tell what begins; a log of another training is replaced."""
        weights = [*student.weights_in_integers]
        masks = [getattr(student.module, weight.mask) for weight in weights]
        numel = sum(mask.numel() for mask in masks)
        self._zeros = 1 - sum(int(mask.sum()) for mask in masks) / max(1, numel)
        self._running = Running(self._accelerator)
        if self._log is not None:
            self._log.path.unlink(missing_ok=True)
        self._report.begin(Outline(
            name=self._name,
            data=self._data.name,
            folder=self._folder.path,
            method="fake quantization",
            target=self._zeros,
            budget="weights",
            epochs=self._epochs,
            steps=self._epochs * self.count,
            done=0,
            sites=len(weights),
            site_parameters=numel,
            parameters=sum(p.numel() for p in student.module.parameters()),
            device=describe_device(self._accelerator),
        ))  # fmt: skip
        self._since = time.perf_counter()

    def seen(
        self, step: int, lr: float, loss: Tensor, outputs: Mapping[str, Tensor], batch: Batch
    ) -> None:
        """Count, and tell every so many steps.

        Raises:
            QuantizeError: When the loss is not a number any more.
        """
        logits = outputs.get("logits", next(iter(outputs.values())))
        assert batch.targets is not None
        self._running.add(loss, logits.detach(), batch.targets)
        self._report.step(step)
        if step % self._settings.log_interval:
            return
        samples = self._running.samples
        mean, accuracy = self._running.read()
        if not math.isfinite(mean):
            raise QuantizeError(
                f"the loss is not a number any more at step {step} of the finetuning: try a "
                "smaller --lr"
            )
        row = TrainRow(
            step=step,
            epoch=step / self.count,
            loss=mean,
            accuracy=accuracy,
            lr=lr,
            sparsity=self._zeros,
            wanted=None,
            threshold=None,
            rate=samples / max(1e-9, time.perf_counter() - self._since),
        )
        if self._log is not None:
            self._log.append(row.to_dict())
        self._report.train(row)
        self._since = time.perf_counter()

    def end(self) -> None:
        """Give the machine back."""
        self._report.end()
        leave_group(self._accelerator)
        release()
