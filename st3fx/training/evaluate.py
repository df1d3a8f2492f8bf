"""Evaluation, and batch-norm statistics taken anew before it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from st3fx.errors import TrainError


@dataclass(frozen=True)
class Scores:
    """What a model scores on the test data.

    Attributes:
        loss: Mean cross entropy.
        top1: Share of samples whose best class is right.
        top5: Share of samples with the right class among the best five; ``None`` for five classes
            or fewer.
        samples: How many samples.
    """

    loss: float
    top1: float
    top5: float | None
    samples: int


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The logits of a model for a tensor, a tuple of positional or a dict of keyword arguments.

    Of several outputs (auxiliary heads), the first.

    Raises:
        TrainError: When there is no tensor of shape (samples, classes, ...) among the outputs.
    """
    if isinstance(inputs, dict):
        outputs = model(**inputs)
    elif isinstance(inputs, tuple | list):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    if isinstance(outputs, dict):
        outputs = outputs.get("logits", next(iter(outputs.values()), None))
    elif isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        shape = f" of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else ""
        raise TrainError(
            f"{type(model).__name__} gives a {type(outputs).__name__}{shape}: training needs "
            "logits of shape (samples, classes)"
        )
    return outputs


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    accelerator: Accelerator,
    *,
    to_format: Callable[[Any], Any] = lambda inputs: inputs,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Score ``model`` in eval mode; its mode is set back. Random generators are not drawn from.

    Args:
        model: All processes call it.
        batches: The prepared test loader: pairs of inputs and targets.
        accelerator: Gathers what the processes saw, without what was added to fill up.
        to_format: Applied to inputs first.
        between: Called before each batch; may raise to stop.

    Raises:
        TrainError: When there is no test data, or the loss on it is not a number.
    """
    mode = model.training
    model.eval()
    # Loss, right ones, right among five, samples: kept on the device, read once.
    totals = torch.zeros(4, dtype=torch.float64, device=_sums_device(accelerator))
    classes = 0
    try:
        for inputs, targets in batches:
            between()
            with accelerator.autocast():
                logits = call(model, to_format(inputs))
            logits, labels = accelerator.gather_for_metrics((logits.float(), targets))
            classes = logits.shape[1]
            totals += sums(logits, labels).to(totals)
    finally:
        model.train(mode)
    loss, right, among, samples = totals.tolist()
    if not samples:
        raise TrainError("the test loader has no sample: give test data to evaluate on")
    if not math.isfinite(loss):
        raise TrainError(
            f"the loss on the test data is {loss}: the model has weights or statistics that are "
            "not numbers, or overflows; take an earlier checkpoint or bundle, or train with a "
            "smaller --lr"
        )
    return Scores(
        loss / samples, right / samples, among / samples if classes > 5 else None, int(samples)
    )


@contextlib.contextmanager
def as_evaluated(model: nn.Module) -> Iterator[None]:
    """Within, a converted model has the thresholds that it is evaluated with.

    In training they may be those of a sparsity that was drawn for one step.
    """
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(mode)


def sums(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss, right ones, right among five, samples: sums over a batch, on its device."""
    loss = F.cross_entropy(logits, targets, reduction="sum")
    # Probabilities as targets: the likeliest class counts.
    labels = targets if targets.dtype == torch.int64 else targets.argmax(1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels.unsqueeze(1)
    count = torch.tensor(labels.numel(), device=logits.device)
    return torch.stack([loss.double(), hits[:, 0].sum(), hits.sum(), count])


def _sums_device(accelerator: Accelerator) -> torch.device:
    # Metal has no float64.
    return torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device


@contextlib.contextmanager
def recalibrated(
    model: nn.Module, batches: Iterable[Any], to_format: Callable[[Any], Any], *, keep: bool
) -> Iterator[None]:
    """Take the batch-norm statistics anew, as plain means over ``batches``.

    Within, the model has them; afterwards those of training are put back unless ``keep``, so that
    training goes on as if nobody had looked.

    Args:
        model: A model that ran in training; everything but batch norm is in eval mode meanwhile.
        batches: Training batches, the same in all processes.
        to_format: Applied to inputs first.
        keep: Whether the statistics stay, e.g. for a model that is to be saved.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    saved = [[b.clone() for b in norm.buffers(recurse=False)] for norm in norms]
    if norms:
        _take_statistics(model, norms, batches, to_format)
    try:
        yield
    finally:
        if not keep:
            for norm, values in zip(norms, saved, strict=True):
                for buffer, value in zip(norm.buffers(recurse=False), values, strict=True):
                    buffer.copy_(value)


@torch.no_grad()
def _take_statistics(
    model: nn.Module,
    norms: list[_NormBase],
    batches: Iterable[Any],
    to_format: Callable[[Any], Any],
) -> None:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, each with the same weight
    try:
        for inputs, _ in batches:
            call(model, to_format(inputs))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
