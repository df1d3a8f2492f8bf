"""Saving a session, and going on from what was saved.

    checkpoints/last.pt     after each epoch, every --checkpoint-every steps, and at an interruption
    checkpoints/best.pt     of the epoch that scored best among those at the full sparsity

A checkpoint is one file, replaced in a single step, with a digest at its end that is checked before
anything else of it is read. It is a dict of tensors, numbers, texts, lists and dicts, which
``torch.load`` reads with ``weights_only=True``. The state dicts of model and optimizer are whole,
also where they are sharded over processes; the sparse state (thresholds, step) is in the model's
own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import FSDPModule

from st3fx.errors import CheckpointError, StateError, TrainError, describe, exhausted, few, quoted
from st3fx.files.atomic import copy_file, replace_file
from st3fx.files.reading import DamageError, build
from st3fx.files.seal import check_sealed, write_sealed
from st3fx.files.tensor_file import load_pickled
from st3fx.training.batches import rng_state, set_rng_state
from st3fx.training.interrupt import Interrupted
from st3fx.training.origin import require_same
from st3fx.training.session import Session
from st3fx.training.settings import FREE, RESUMABLE

_WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's parameters are spread over the processes."""
    return isinstance(model, FSDPModule)


def get_states(model: nn.Module, optimizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model's and optimizer's state; all processes must call it.

    Of a sharded model only the main process gets anything.
    """
    if not is_sharded(model):
        return model.state_dict(), optimizer.state_dict()
    return (
        sharded.get_model_state_dict(model, options=_WHOLE),
        sharded.get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE),
    )


def set_states(
    model: nn.Module,
    optimizer: Any,
    states: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """The inverse of :func:`get_states`.

    Raises:
        CheckpointError: When the states do not fit.
    """
    of_model, of_optimizer = states
    try:
        if is_sharded(model):
            sharded.set_model_state_dict(model, of_model, options=_WHOLE)
            sharded.set_optimizer_state_dict(
                model, optimizer.optimizer, of_optimizer, options=_WHOLE
            )
        else:
            model.load_state_dict(of_model)
            optimizer.load_state_dict(of_optimizer)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        # A state dict of torch's has no types that could be checked before.
        raise CheckpointError(f"the checkpoint is of another model: {describe(error)}") from error


FORMAT = "st3fx-checkpoint"
FORMAT_VERSION = 2


@dataclass
class Checkpoint:
    """Everything that training needs to go on as if it had never stopped.

    Attributes:
        settings: As a dict; those that the weights depend on must be the same at resumption.
        sites: Full names of the sites, in order.
        processes: How many trained together.
        epoch: The epoch under way, or the next one.
        batch: Batches of it that were trained on, per process.
        step: Optimizer steps so far.
        best: Best top-1 accuracy so far at the full sparsity.
        log_bytes: Length of the log.
        log_sha256: Of the log.
        origin: What it was made from, as ``st3fx.training.origin`` gives it.
        model: State dict of the converted model.
        optimizer: State dict.
        average: State dict of the averaged model, if there is one.
        scaler: State of the gradient scaler, if there is one.
        ranks: Per process, the random generators and the sums of the log's row under way.
    """

    settings: dict[str, Any]
    sites: list[str]
    processes: int
    epoch: int
    batch: int
    step: int
    best: float | None
    log_bytes: int
    log_sha256: str
    origin: dict[str, str]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    scaler: dict[str, Any] | None
    ranks: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        """Write to ``path``; a kill at any moment leaves the old file or this one.

        Raises:
            CheckpointError: When it cannot be written; the old file is there still.
        """
        content = {"format": FORMAT, "version": FORMAT_VERSION, **_shallow(self)}
        try:
            replace_file(path, lambda file: write_sealed(file, lambda to: torch.save(content, to)))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"cannot write {path}: {reason(error)}") from error

    def check(self, settings: dict[str, Any], free: set[str], sites: Sequence[str], where: Path,
              processes: int) -> None:  # fmt: skip
        """Fail unless this belongs to the run that is to go on.

        Raises:
            CheckpointError: Naming what differs.
        """
        for name, now in settings.items():
            then = self.settings.get(name)
            if name not in free and _plain(then, name) != _plain(now, name):
                raise CheckpointError(
                    f"{where} was trained with {name} = {_plain(then)!r}, and it is "
                    f"{_plain(now)!r} now: put it back, or start anew in another --output-dir"
                )
        if self.sites != list(sites):
            odd = sorted(set(self.sites) ^ set(sites)) or list(sites)
            raise CheckpointError(
                f"{where} is of another model: its sites differ, for example {few(odd, limit=2)}"
            )
        if self.processes != processes:
            raise CheckpointError(
                f"{where} is of {self.processes} processes, and now there are {processes}: "
                "start as many again"
            )


def load_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Args:
        path: The file.
        mapped: Whether they stay in the file until they are read.

    Raises:
        CheckpointError: When it is missing, damaged, or not a checkpoint of this version.
    """
    try:
        check_sealed(path)
        content = load_pickled(path, mapped=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except DamageError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # truncated zip, not a zip, a pickle with code: many types
        lacking = exhausted(error)
        if lacking is not None:  # that says nothing of the file
            where = "" if str(path) in lacking else f"{path}: "
            raise CheckpointError(f"cannot read {where}{lacking}") from error
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({describe(error, limit=100)})"
        ) from error
    # A tensor may stand in the place of each, and be equal to nothing.
    if not isinstance(content, dict) or f"{content.pop('format', None)}" != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of st3fx train")
    if f"{content.pop('version', None)}" != f"{FORMAT_VERSION}":
        raise CheckpointError(f"{path} was written by another version of st3fx")
    names = {item.name for item in fields(Checkpoint)}
    if content.keys() != names:
        raise CheckpointError(f"{path} lacks {few(sorted(names - content.keys()))}")
    try:
        build(content, Checkpoint)
    except DamageError as error:
        raise CheckpointError(f"{path} is not a checkpoint of this version: {error}") from error
    return Checkpoint(**content)  # state dicts with all that torch has on them


def reason(error: BaseException) -> str:
    """Why a file could not be written, in the words of the operating system where it has any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    # torch's writer reports its own failure, which for a file is that of the disk.
    text = re.sub(r"^\[enforce fail at [^\]]*\] *\.? *", "", str(error))
    return describe(RuntimeError(text)).removeprefix("RuntimeError: ")


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    return {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}


def _plain(value: Any, name: str = "") -> Any:
    """A setting to compare; of a file its name: from another folder it has another path."""
    if name in ("spec", "weights", "data") and isinstance(value, str):
        return Path(value).name
    return list(value) if isinstance(value, tuple) else value


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
        log_bytes, log_sha256 = session.log.commit()
        checkpoint = Checkpoint(
            settings=session.settings.to_dict(),
            sites=[site.name for site in session.sparsifier.plan.sites],
            processes=accelerator.num_processes,
            epoch=session.epoch,
            batch=session.batch,
            step=session.step,
            best=session.best,
            log_bytes=log_bytes,
            log_sha256=log_sha256,
            origin=session.origin,
            model=model,
            optimizer=optimizer,
            average=None if average is None else average.model.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            ranks=ranks,
        )

    in_main(accelerator, lambda: _write(session, checkpoint, best=best))
    session.saved = session.step


def in_main(accelerator: Accelerator, work: Callable[[], object]) -> None:
    """Do something in the main process, for which the others wait; they fail if it does.

    Raises:
        TrainError: When it does, with the same message in all processes.
    """
    caught: TrainError | None = None
    if accelerator.is_main_process:
        try:
            work()
        except TrainError as error:
            caught = error
    said = gather_object([None if caught is None else str(caught)])[0]
    if caught is not None:
        raise caught
    if said is not None:
        raise TrainError(said)


def _write(session: Session, checkpoint: Checkpoint, *, best: bool) -> None:
    folder = session.folder
    try:
        if best:
            # The best one first: a kill between the two repeats the epoch, and finds it again.
            checkpoint.save(folder.best)
            try:
                copy_file(folder.best, folder.last)
            except OSError as error:
                raise CheckpointError(f"cannot write {folder.last}: {reason(error)}") from error
        else:
            checkpoint.save(folder.last)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; {session.kept}: make room, and go on with --resume {quoted(folder.path)}"
        ) from error


def stop_if_asked(session: Session) -> None:
    """Save and stop, if a signal asked for it.

    Raises:
        Interrupted: When one did.
    """
    # Several processes must agree, which costs an exchange: they do so with the rows of the log.
    alone = session.accelerator.num_processes == 1
    if alone or session.is_due(session.settings.log_interval):
        number = session.interrupt.agreed(session.accelerator)
        if number is not None:
            session.report.stage("save")
            save(session)
            raise Interrupted(number)


def _newest_whole(session: Session, path: Path) -> tuple[Checkpoint, Path]:
    """The checkpoint; where it is the newest and damaged, the best one, which is earlier."""
    try:
        return load_checkpoint(path), path
    except CheckpointError as error:
        earlier = session.folder.best
        if path != session.folder.last or not path.exists() or exhausted(error) is not None:
            raise
        try:
            saved = load_checkpoint(earlier)
        except CheckpointError:
            raise CheckpointError(
                f"{error}; there is no earlier checkpoint that is whole: put back a copy of it, or "
                "start anew by --force"
            ) from error
        session.report.note(f"{error}: the run goes on from {earlier}, of step {saved.step}")
        return saved, earlier


def restore(
    session: Session, path: Path, *, read_only: bool = False, accepted: bool = False
) -> None:
    """Put a session where it was when ``path`` was saved.

    Args:
        session: At its beginning.
        path: The checkpoint.
        read_only: Whether the log stays as it is: nothing will be trained.
        accepted: Whether it goes on though model, data or log were changed since.

    Raises:
        CheckpointError: When there is no such checkpoint, or it is of another run.
    """
    accelerator = session.accelerator
    saved, path = _newest_whole(session, path)
    sites = [site.name for site in session.sparsifier.plan.sites]
    saved.check(session.settings.to_dict(), RESUMABLE, sites, path, accelerator.num_processes)
    for name in sorted(RESUMABLE - FREE):
        then, now = saved.settings.get(name), getattr(session.settings, name)
        if then != now and not read_only:
            session.report.note(
                f"{name} was {then} until step {saved.step}, and is {now} from here"
            )
    changes = require_same(saved.origin, session.origin, path, accepted=accepted or read_only)
    if changes is not None:
        session.report.note(changes)
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
    if not read_only:
        cut = session.log.cut
        in_main(accelerator, lambda: cut(saved.log_bytes, saved.log_sha256, accepted=accepted))
    set_rng_state(rank["rng"])
