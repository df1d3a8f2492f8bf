"""Saving a session, and going on from what was saved."""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object

from st3fx.core.messages import describe
from st3fx.errors import CheckpointError, StateError
from st3fx.training.checkpoint import Checkpoint, copy_file, load_checkpoint
from st3fx.training.interrupt import Interrupted
from st3fx.training.rng import rng_state, set_rng_state
from st3fx.training.session import Session
from st3fx.training.settings import FREE
from st3fx.training.states import get_states, set_states


def save(session: Session, *, best: bool = False) -> None:
    """Write the newest checkpoint, and with ``best`` that of the best epoch too.

    Raises:
        TrainError: When a weight is not a number any more: the last good checkpoint stays.
        CheckpointError: When it cannot be written; the one before is there still.
    """
    session.require_finite()
    accelerator = session.accelerator
    model, optimizer = get_states(session.plain, session.optimizer)
    average, scaler = session.average, accelerator.scaler
    ranks = gather_object([{"rng": rng_state(), "running": session.running.state()}])
    if accelerator.is_main_process:
        checkpoint = Checkpoint(
            settings=session.settings.to_dict(),
            sites=[site.name for site in session.sparsifier.plan.sites],
            processes=accelerator.num_processes,
            epoch=session.epoch,
            batch=session.batch,
            step=session.step,
            best=session.best,
            log_bytes=session.log.commit(),
            model=model,
            optimizer=optimizer,
            average=None if average is None else average.model.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            ranks=ranks,
        )
        _write(session, checkpoint, best=best)
    session.saved = session.step
    accelerator.wait_for_everyone()


def _write(session: Session, checkpoint: Checkpoint, *, best: bool) -> None:
    folder = session.folder
    try:
        if best:
            # The best one first: a kill between the two repeats the epoch, and finds it again.
            checkpoint.save(folder.best)
            copy_file(folder.best, folder.last)
        else:
            checkpoint.save(folder.last)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; {session.kept}: make room, and go on with --resume {folder.path}"
        ) from error


def stop_if_asked(session: Session) -> None:
    """Save and stop, if a signal asked for it.

    Raises:
        Interrupted: Then.
    """
    # Several processes must agree, which costs an exchange: they do so with the rows of the log.
    alone = session.accelerator.num_processes == 1
    if alone or session.is_due(session.settings.log_interval):
        number = session.interrupt.agreed(session.accelerator)
        if number is not None:
            session.report.stage("save")
            save(session)
            raise Interrupted(number)


def restore(session: Session, path: Path, *, read_only: bool = False) -> None:
    """Put a session where it was when ``path`` was saved.

    Args:
        session: At its beginning.
        path: The checkpoint.
        read_only: Whether the log stays as it is: nothing will be trained.

    Raises:
        CheckpointError: When there is no such checkpoint, or it is of another run.
    """
    accelerator = session.accelerator
    saved = load_checkpoint(path)
    sites = [site.name for site in session.sparsifier.plan.sites]
    saved.check(session.settings.to_dict(), FREE, sites, path, accelerator.num_processes)
    set_states(session.plain, session.optimizer, (saved.model, saved.optimizer))
    try:
        if session.average is not None and saved.average is not None:
            session.average.model.load_state_dict(saved.average)
    except (RuntimeError, StateError) as error:
        raise CheckpointError(f"{path} is of another model: {describe(error)}") from error
    if accelerator.scaler is not None and saved.scaler is not None:
        accelerator.scaler.load_state_dict(saved.scaler)
    rank = saved.ranks[accelerator.process_index]
    session.running.load(rank["running"])
    session.epoch, session.batch, session.step = saved.epoch, saved.batch, saved.step
    session.best, session.saved = saved.best, saved.step
    if accelerator.is_main_process and not read_only:
        session.log.cut(saved.log_bytes)
        session.folder.tidy()
    set_rng_state(rank["rng"])
