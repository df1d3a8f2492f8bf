"""The training loop, evaluations that leave no trace in a session, and the end of a run."""

from __future__ import annotations

import contextlib
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import nn
from torch.nn import functional as F

from st3fx.errors import DataError, TrainError, few, quoted
from st3fx.modules.state import preserved_rng
from st3fx.sparsifier.sparsifier import Sparsifier
from st3fx.training import method
from st3fx.training.evaluate import Scores, as_evaluated, call, evaluate, recalibrated
from st3fx.training.interrupt import Interrupted
from st3fx.training.optim import set_learning_rate
from st3fx.training.report import EvalRow, TrainResult
from st3fx.training.saving import get_states, is_sharded, save, stop_if_asked
from st3fx.training.session import Session


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
    _tell_of_bad(session)
    with as_evaluated(sparsifier.model):
        empty, sparsity = sparsifier.empty_layers(), sparsifier.sparsity
    at_target = session.sparsifier.reached
    best = at_target and (session.best is None or scores.top1 > session.best)
    if best:
        session.best = scores.top1
    row = EvalRow(
        step=session.step,
        epoch=session.epoch + 1,
        loss=scores.loss,
        top1=scores.top1,
        top5=scores.top5,
        sparsity=sparsity,
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


def train(session: Session) -> None:
    """Train from where the session is to the end of its last epoch.

    A step is an optimizer step: sparsity, learning rate, average, log and checkpoints count these,
    whatever becomes of epochs and batches. Nothing waits for the device but the rows of the log.

    Raises:
        DataError: When data cannot be read; a process that trains alone has saved its state.
        TrainError: When the loss or a weight is not a number any more.
        CheckpointError: When a checkpoint cannot be written. The one before is there still.
        Interrupted: After a signal, and after the state was saved.
    """
    try:
        _train(session)
    except DataError as error:
        raise DataError(f"{error}; {_kept(session)}") from error.__cause__ or error


def _kept(session: Session) -> str:
    """Save what was trained on the data before, if that can be; what is left, and how to go on."""
    accelerator, command = session.accelerator, f"--resume {quoted(session.folder.path)}"
    if session.settings.on_bad_sample == "stop":
        command += ", with --on-bad-sample skip if you like"
    # Gradients of half a step are in no checkpoint, and other processes may not come to save.
    alone = accelerator.num_processes == 1 and accelerator.sync_gradients
    if alone and session.step > session.saved:
        with contextlib.suppress(TrainError):
            session.report.stage("save")
            save(session)
    verb = "go on" if session.folder.last.exists() else "begin again"
    return f"{session.kept}: {verb} with {command}"


def _train(session: Session) -> None:
    settings, accelerator, model = session.settings, session.accelerator, session.model
    optimizer, sparsifier, running = session.optimizer, session.sparsifier, session.running
    session.bad = _left_out(session)
    while session.epoch < settings.epochs:
        model.train()
        session.start_clock()
        for number, (inputs, targets) in session.batches.epoch(session.epoch, session.batch):
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    logits = call(model, session.to_format(inputs))
                loss = F.cross_entropy(
                    logits.float(), targets, label_smoothing=settings.label_smoothing
                )
                accelerator.backward(session.share(number) * (loss + sparsifier.penalty()))
                if accelerator.sync_gradients and settings.clip_grad > 0:
                    accelerator.clip_grad_norm_(model.parameters(), settings.clip_grad)
                set_learning_rate(optimizer, session.learning_rate)
                optimizer.step()
                optimizer.zero_grad()
            running.add(loss, logits, targets)
            session.leave_out("train", session.batches.bad)
            session.batch = number + 1
            if not accelerator.sync_gradients:
                continue  # more batches belong to this step
            session.step += 1
            if not optimizer.step_was_skipped:  # fp16: gradients overflowed, nothing was changed
                session.follow()
            session.report.step(session.step)
            if session.is_due(settings.log_interval):
                session.log_row()
            if session.is_due(settings.checkpoint_every):
                save(session)
            stop_if_asked(session)
        row = evaluate_epoch(session)
        session.epoch, session.batch = session.epoch + 1, 0
        save(session, best=row.best)


def finish(
    session: Session, name: str, seconds: float, *, check: bool = True
) -> tuple[TrainResult, nn.Module, TrainError | None]:
    """Score the final model and check its sparsity; all processes must call it.

    Args:
        session: After its last epoch.
        name: Of the model.
        seconds: How long it trained.
        check: Whether the sparsity that was asked for must have been reached.

    Returns:
        What came of it; the final model, converted still: the averaged one if there is one, with
        the batch-norm statistics that it was scored with; the error if the sparsity that was asked
        for was missed, to be raised when the model is saved.

    Raises:
        TrainError: When the model gives no numbers.
    """
    # The statistics are those that the last epoch was evaluated with.
    scores, sparsifier = score(session, epoch=max(0, session.epoch - 1), keep=True)
    model = _whole(session, sparsifier)
    with as_evaluated(sparsifier.model):
        layers, sparsity = method.layer_sparsity(sparsifier), sparsifier.sparsity
    steps = session.steps_per_epoch * session.settings.epochs
    missed = None
    if check:
        try:
            method.require_target(sparsifier, method.share(sparsifier, layers), steps)
            method.require_own_targets(sparsifier, layers)
        except TrainError as error:
            missed = error
    rows = session.log.rows()
    result = TrainResult(
        name=name,
        folder=session.folder.path,
        steps=session.step,
        seconds=seconds,
        scores=scores,
        best=_best(rows),
        dense=_dense(rows),
        sparsity=sparsity,
        target=sparsifier.target,
        layers=layers,
        own=method.own_targets(sparsifier),
        empty=tuple(layer for layer, share in layers.items() if share == 1),
    )
    return result, model, missed


def _whole(session: Session, sparsifier: Sparsifier) -> nn.Module:
    """The model with all its weights in this process."""
    if session.twin is None:
        return sparsifier.model
    states, _ = get_states(session.plain, session.optimizer)
    if states:  # only the main process is given them
        session.twin.load_state_dict(states)
    return session.twin


def _left_out(session: Session) -> set[tuple[str, int]]:
    """The samples that a run left out before it was resumed."""
    return {(row["part"], row["index"]) for row in session.log.rows() if row["kind"] == "bad"}


def _tell_of_bad(session: Session) -> None:
    """At the end of an epoch: how many samples were left out so far, and the first of them."""
    session.leave_out("test", session.test.bad)
    own = sorted(session.bad)
    everywhere = gather_object(own) if session.accelerator.num_processes > 1 else own
    for part, whole in (("train", "training"), ("test", "test")):
        indices = [str(index) for name, index in sorted(set(everywhere)) if name == part]
        if indices:
            session.report.note(
                f"{len(indices)} bad {whole} samples left out so far: {few(indices, limit=8)} "
                f"(reasons in {session.folder.log})"
            )


def _best(rows: list[dict[str, Any]]) -> tuple[float, int] | None:
    best = [row for row in rows if row["kind"] == "eval" and row["best"]]
    return (best[-1]["top1"], best[-1]["epoch"]) if best else None


def _dense(rows: list[dict[str, Any]]) -> float | None:
    dense = [row for row in rows if row["kind"] == "eval" and row["sparsity"] == 0]
    return dense[-1]["top1"] if dense else None
