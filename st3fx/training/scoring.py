"""Evaluating a session without leaving a trace in it."""

from __future__ import annotations

import contextlib

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

from st3fx.core.state import preserved_rng
from st3fx.sparsifier import Sparsifier
from st3fx.training import gauge
from st3fx.training.evaluate import Scores, evaluate, recalibrated
from st3fx.training.interrupt import Interrupted
from st3fx.training.report import EvalRow
from st3fx.training.saving import save
from st3fx.training.session import Session
from st3fx.training.states import is_sharded


def score(session: Session, epoch: int, *, keep: bool = False) -> tuple[Scores, Sparsifier]:
    """Score the averaged weights if there are any, else the model itself.

    Args:
        session: Its weights, statistics, modes and random generators are as before afterwards.
        epoch: Whose first batches the batch-norm statistics are taken from.
        keep: Whether batch-norm statistics that were taken anew stay, for a model to be saved.

    Returns:
        The scores, and the sparsifier of the model that they are of.

    Raises:
        Interrupted: When a signal asks to stop.
    """
    accelerator, settings = session.accelerator, session.settings
    if session.average is not None:
        model, sparsifier = session.average.model, session.average.threshold()
    else:
        # A sharded model has to be called as it is wrapped; any other is called without detours.
        model = session.model if is_sharded(session.plain) else session.plain
        sparsifier = session.sparsifier
    _share_buffers(accelerator, model)

    def stop_if_asked() -> None:
        number = session.interrupt.agreed(accelerator)
        if number is not None:
            raise Interrupted(number)

    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved_rng())
        if settings.bn_recalibrate:
            batches = session.batches.sample(epoch, settings.bn_recalibrate)
            stack.enter_context(recalibrated(model, batches, session.to_format, keep=keep))
        scores = evaluate(
            model, session.test, accelerator, to_format=session.to_format, between=stop_if_asked
        )
    return scores, sparsifier


def _share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the main one's batch-norm statistics, of which each has its own."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def evaluate_epoch(session: Session) -> EvalRow:
    """Score the session at the end of an epoch, and tell it.

    An interruption is saved before it goes on: at resumption the evaluation is done again.
    """
    session.require_finite()
    session.report.stage("evaluate")
    try:
        scores, sparsifier = score(session, session.epoch)
    except Interrupted:
        save(session)
        raise
    empty = sparsifier.empty_layers()
    at_target = gauge.is_at_target(session.sparsifier)
    best = at_target and (session.best is None or scores.top1 > session.best)
    if best:
        session.best = scores.top1
    row = EvalRow(
        step=session.step,
        epoch=session.epoch + 1,
        loss=scores.loss,
        top1=scores.top1,
        top5=scores.top5,
        sparsity=sparsifier.sparsity,
        at_target=at_target,
        best=best,
        empty=empty,
    )
    session.write(row.to_dict())
    session.report.evaluation(row)
    for name in [name for name in empty if name not in session.empty]:
        session.empty.add(name)
        session.report.note(f"{name} has no weight left: lower the sparsity or --exclude {name}")
    return row
