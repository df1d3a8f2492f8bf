"""Trains a file of integers for a few epochs, so that it gives what the fp32 file gives.

The loss needs no targets: it is the divergence of the outputs from the fp32 file's on the same
samples. For class scores, two-dimensional outputs, that is the Kullback-Leibler divergence of their
softmax, for any other output of real numbers the share of noise, ``Σ (y − ŷ)² / Σ y²``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st3fx.errors import QuantizeError, describe
from st3fx.passes.onnx.values import Array
from st3fx.quantization.calibrate import Feed
from st3fx.quantization.measure import compare, opened_model
from st3fx.quantization.qdq import Source
from st3fx.quantization.torch_graph import TorchGraph, to_torch
from st3fx.quantization.trainable import Trainable, trainable

LEAST_PARITY = 10.0
"""Decibels by which module and file must be nearer to each other than the file to fp32: the same
roundings in another order of sums flip a few values that lie between two steps."""


@dataclass(frozen=True)
class Course:
    """How long and how fast.

    Attributes:
        epochs: Passes over the training data.
        lr: Learning rate of the first step; it falls to zero along a cosine.
        learn_scales: Whether the scales of activations are learned; else calibration's stay. A
            small depthwise network came as near to fp32 either way (33 to 37 dB, from 29 and 32).
    """

    epochs: int
    lr: float = 3e-4
    learn_scales: bool = False

    def __post_init__(self) -> None:
        """Refuse what nothing can be trained with.

        Raises:
            QuantizeError: For a value outside its range.
        """
        if self.epochs < 1:
            raise QuantizeError(f"finetune {self.epochs}: give a number of epochs, 1 or more")
        if not 0 < self.lr < 1:
            raise QuantizeError(
                f"lr {self.lr:g}: give a number above 0 and below 1, e.g. {Course.lr:g}"
            )


@dataclass(frozen=True)
class Batch:
    """Some samples on the device of the training.

    Attributes:
        inputs: In the order of the file's.
        targets: Of them, for whoever watches; ``None`` where nobody has any.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None


class Lessons(Protocol):
    """Training data, and who watches.

    Attributes:
        device: Where to train.
        count: Batches of an epoch.
    """

    device: torch.device
    count: int

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, the same for the same number."""

    def begin(self, student: Trainable) -> None:
        """Training begins."""

    def seen(
        self, step: int, lr: float, loss: Tensor, outputs: Mapping[str, Tensor], batch: Batch
    ) -> None:
        """After each step, 1 for the first."""

    def end(self) -> None:
        """Training is over, or failed."""


@dataclass(frozen=True)
class Finetuned:
    """What was done.

    Attributes:
        epochs: Passes over the training data.
        steps: Of the optimizer.
        lr: Learning rate of the first step.
        first: Mean loss of the first tenth of the steps.
        last: Of the last.
        device: Where.
    """

    epochs: int
    steps: int
    lr: float
    first: float
    last: float
    device: str


@dataclass(frozen=True)
class Tuning:
    """What a file of integers is trained by.

    Attributes:
        course: How long and how fast.
        parameters: Names of constants that are parameters of the model.
        lessons: Prepares the data and who watches, when it comes to that.
    """

    course: Course
    parameters: Sequence[str]
    lessons: Callable[[], Lessons]


def finetune(
    model: onnx.ModelProto, source: Source, weight_range: str, tuning: Tuning, checked: Checked
) -> tuple[onnx.ModelProto, Finetuned]:
    """Train a file of integers.

    Args:
        model: The file, as the quantizer gives it.
        source: The fp32 file that it was made from, whose zeros stay.
        weight_range: As the file was made with.
        tuning: By what.
        checked: By what files are compared with what is trained.

    Returns:
        The file with the weights, biases and scales that were learned.

    Raises:
        QuantizeError: When torch cannot compute what the file does, the loss is no number any more,
            or nothing is left to be learned from.
    """
    course = tuning.course
    student = trainable(
        model, source, tuning.parameters, weight_range, learn_scales=course.learn_scales
    )
    checked.compare(model, student)
    lessons = tuning.lessons()
    student.module.to(lessons.device)
    teacher = to_torch(source.model)
    teacher.module.to(lessons.device)
    lessons.begin(student)
    try:
        losses = _train(student, teacher, course, lessons)
    finally:
        lessons.end()
    student.module.to("cpu")
    found = student.written(model, weight_range)
    checked.compare(found, student)
    tenth = max(1, len(losses) // 10)
    return found, Finetuned(
        epochs=course.epochs,
        steps=len(losses),
        lr=course.lr,
        first=float(losses[:tenth].mean()),
        last=float(losses[-tenth:].mean()),
        device=lessons.device.type,
    )


def _train(student: Trainable, teacher: TorchGraph, course: Course, lessons: Lessons) -> Tensor:
    """Train; the loss of each step, on the CPU."""
    # Adam moves a number by about its rate, whatever the loss; a scale moves by a share of itself.
    groups = [{"params": [*student.weights, *student.others], "share": 1.0}]
    groups += [{"params": [scale], "share": float(scale.detach())} for scale in student.scales]
    optimizer = torch.optim.Adam(groups, course.lr)
    total, losses = course.epochs * lessons.count, list[Tensor]()
    for epoch in range(course.epochs):
        for batch in lessons.epoch(epoch):
            rate = course.lr * (1 + math.cos(math.pi * min(1, len(losses) / total))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
            with torch.no_grad():
                wanted = teacher.module(*batch.inputs)
            outputs = student.module(*batch.inputs)
            loss = divergence(outputs, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            student.keep_positive()
            losses.append(loss.detach())
            lessons.seen(len(losses), rate, losses[-1], outputs, batch)
    if not losses:
        raise QuantizeError("the training data has no batch to finetune on: give at least one")
    found = torch.stack(losses).cpu()
    for place, loss in enumerate(found.tolist()):
        if not math.isfinite(loss):
            raise QuantizeError(
                f"the loss is not a number any more at step {place + 1} of the finetuning: try a "
                f"smaller --lr than {course.lr:g}"
            )
    return found


def divergence(outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """How far outputs are from those of fp32: see the module's docstring.

    Raises:
        QuantizeError: When no output has real numbers.
    """
    terms = []
    for name, y in wanted.items():
        if not y.is_floating_point():
            continue
        found = outputs[name]
        if y.dim() == 2 and y.shape[1] > 1:
            terms.append(F.kl_div(
                F.log_softmax(found, 1), F.log_softmax(y, 1), reduction="batchmean",
                log_target=True,
            ))  # fmt: skip
        else:
            terms.append((found - y).square().sum() / y.square().sum().clamp(min=1e-12))
    if not terms:
        raise QuantizeError("--finetune needs an output of real numbers")
    return torch.stack(terms).sum()


@dataclass(frozen=True)
class Checked:
    """Compares files with modules, in eval and on the CPU.

    Attributes:
        feeds: Calls.
        expected: Outputs of the fp32 file at these.
        path: Of a file for trials.
        loose: Outputs that may have another size.
    """

    feeds: Sequence[Feed]
    expected: Sequence[Mapping[str, Array]]
    path: Path
    loose: Collection[str] = ()

    def compare(self, model: onnx.ModelProto, student: Trainable) -> None:
        """Fail unless a module computes what its file does.

        Raises:
            QuantizeError: Then.
        """
        run = opened_model(model, self.path, optimized=False)
        module = student.module
        try:
            found = [self._outputs(module, student.inputs, feed) for feed in self.feeds]
        except Exception as error:
            raise QuantizeError(
                f"--finetune cannot train this model: torch fails at it ({describe(error)})"
            ) from error
        cost = compare(self.expected, run, self.feeds, self.loose).sqnr
        name, parity = compare(found, run, self.feeds, self.loose).worst
        if parity is None or math.isinf(parity):
            return
        if not parity >= min(cost[name] + LEAST_PARITY, 100):
            raise QuantizeError(
                f"--finetune cannot train this model: its file and what torch makes of it differ, "
                f"by {parity:.1f} dB of signal over noise at output {name}"
            )

    @staticmethod
    @torch.no_grad()
    def _outputs(module: nn.Module, inputs: Sequence[str], feed: Feed) -> Mapping[str, Array]:
        values: Mapping[str, Tensor] = module(*(torch.from_numpy(feed[x].copy()) for x in inputs))
        return {name: value.numpy() for name, value in values.items()}
