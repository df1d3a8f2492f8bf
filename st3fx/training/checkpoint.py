"""Checkpoints: one file each, replaced in a single step, read without running anything from it.

    checkpoints/last.pt     after each epoch, every --checkpoint-every steps, and at an interruption
    checkpoints/best.pt     of the epoch that scored best among those at the full sparsity

A checkpoint is a dict of tensors, numbers, texts, lists and dicts, which ``torch.load`` reads with
``weights_only=True``. The sparse state (thresholds, step) is in the model's own state dict.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from st3fx.core.messages import describe, few
from st3fx.errors import CheckpointError
from st3fx.files.atomic import replace_file

FORMAT = "st3fx-checkpoint"
FORMAT_VERSION = 1


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
            replace_file(path, lambda file: torch.save(content, file))
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
            if name not in free and _plain(then) != _plain(now):
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


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; its tensors are on the CPU.

    Raises:
        CheckpointError: When it is missing, damaged, or not a checkpoint of this version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except Exception as error:  # truncated zip, not a zip, a pickle with code: many types
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint ({describe(error, limit=100)})"
        ) from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of st3fx train")
    if content.pop("version", None) != FORMAT_VERSION:
        raise CheckpointError(f"{path} was written by another version of st3fx")
    names = {item.name for item in fields(Checkpoint)}
    if content.keys() != names:
        raise CheckpointError(f"{path} lacks {few(sorted(names - content.keys()))}")
    return Checkpoint(**content)


def copy_file(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source`` in a single step, without copying where possible.

    ``source`` is later replaced, never written to, so that both may share their bytes.

    Raises:
        CheckpointError: When it cannot be written; the old file is there still.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        try:
            part.hardlink_to(source)
        except OSError:  # a file system without hard links
            with source.open("rb") as content:
                replace_file(target, lambda file: shutil.copyfileobj(content, file))
            return
        part.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {reason(error)}") from error


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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
