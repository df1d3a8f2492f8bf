"""Whose word code runs on: the user's own command line, or data that the user trusts.

A bundle, a run and a recipe name the code that builds their model. Opening them runs none of it but
what this user has run before: each file that was run on the user's own word is remembered by path
and SHA-256, with what was called in it, and so are the modules that it imported from its folder.
``--trust`` runs what data names and remembers it for that folder alone.

The memory is one file of the user's, in ``$XDG_STATE_HOME/st3fx`` (``~/.local/state/st3fx``) or
where ``ST3FX_TRUST`` says. It is replaced whole, readable by its owner alone, and trusts nothing
when it is missing, damaged, or could have been written by somebody else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from st3fx.errors import TrustError
from st3fx.files.atomic import replace_file, tidy
from st3fx.files.lock import FileLock
from st3fx.files.reading import build, parse_json

MODEL, DATA, IMPORTED = "model", "data", "import"
"""What a file is run for: to build a model, to make loaders, for a file beside it."""

_FORMAT = "st3fx-trust 1"

_LIMIT = 2000
"""Entries; the oldest go first. Sessions of months, in a file that is read in milliseconds."""


@dataclass(frozen=True)
class Entry:
    """A file that was run.

    Attributes:
        path: Absolute, links resolved.
        sha256: Of what was compiled, in hexadecimal.
        use: What for, with what was called: ``model:build``.
        folder: The data that may run it, absolute; ``None`` for all data, because the user has
            named the file.
    """

    path: str
    sha256: str
    use: str
    folder: str | None = None


_ran: dict[Entry, None] = {}
"""What this process has run, in order."""


@dataclass(frozen=True)
class Permit:
    """On whose word code runs.

    Attributes:
        folder: The bundle, run or recipe that names the code; ``None``: the user does.
        trust: Whether the user trusts what it names.
        file: The file in that folder which names it, where it is not the whole folder that does.
    """

    folder: Path | None = None
    trust: bool = False
    file: Path | None = None

    @property
    def named(self) -> Path | None:
        """What names the code, for messages."""
        return self.file or self.folder

    @property
    def is_free(self) -> bool:
        """Whether any code may run."""
        return self.folder is None or self.trust

    def check(self, path: Path, source: bytes, use: str) -> None:
        """Take note of code that is about to run.

        Args:
            path: Its file, absolute, links resolved.
            source: What will be compiled.
            use: What for: ``model:build``, ``data:make_loaders``, ``import``.

        Raises:
            TrustError: When data names it that is not trusted.
        """
        own = None if self.folder is None else str(self.folder)
        entry = Entry(str(path), hashlib.sha256(source).hexdigest(), use, own)
        if not self.is_free and not self._remembers(entry):
            raise TrustError(self._refusal(entry))
        _ran[entry] = None

    def refuse(self, what: str) -> TrustError:
        """The error for code that data names and nobody trusts."""
        return TrustError(
            f"{self.named} names code of its own, {what}, and opening data runs none: give "
            "--trust to run it and remember that for this folder, or --model SPEC to name the "
            "model's code yourself (in Python trust=True, model=SPEC)"
        )

    def _remembers(self, entry: Entry) -> bool:
        assert self.folder is not None
        places = {None, *map(str, (self.folder, *self.folder.parents))}
        return any(
            known.folder in places
            and (known.path, known.sha256) == (entry.path, entry.sha256)
            # Importing a file runs what calling something in it has run, and no more.
            and entry.use in (known.use, IMPORTED)
            for known in _read()
        )

    def _refusal(self, entry: Entry) -> str:
        kind, _, name = entry.use.partition(":")
        if kind == IMPORTED:
            return (
                f"{entry.path} was changed, or is new, since you ran the code beside it that "
                f"{self.named} names: give --trust to run it as it is now"
            )
        if any(known.path == entry.path and known.use == entry.use for known in _read()):
            return (
                f"{entry.path}, which {self.named} names, was changed since you ran it: give "
                "--trust to run it as it is now"
            )
        if kind == DATA:
            return (
                f"{self.named} names code of its own, {entry.path}:{name}, and opening data runs "
                "none: give --trust to run it and remember that for this folder"
            )
        return str(self.refuse(f"{entry.path}:{name}".removesuffix(":")))


USER = Permit()
"""The user names the code."""


def remember(folder: Path | None = None) -> None:
    """Keep what this process has run for the sessions to come.

    Where the memory cannot be written nothing is lost but that: the next session asks again.

    Args:
        folder: Data that was just written and names that code: it may run it too.
    """
    new = list(_ran)
    if folder is not None:
        new += [dataclasses.replace(entry, folder=str(folder)) for entry in new if entry.folder]
    with contextlib.suppress(OSError, RuntimeError):
        path = location()
        tidy(path.parent)
        if set(new) <= set(_read()):
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")) as lock:
            for _ in range(40):
                if lock.take():
                    break
                time.sleep(0.05)  # after two seconds without it: nobody is to wait for a memory
            entries = list(dict.fromkeys((*_read(), *new)))[-_LIMIT:]
            _write(path, entries)


def location() -> Path:
    """Where the memory lies. Relative paths would lie in whatever folder is opened: ignored."""
    given, state = os.environ.get("ST3FX_TRUST", ""), os.environ.get("XDG_STATE_HOME", "")
    if Path(given).is_absolute():
        return Path(given)
    home = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return home / "st3fx" / "trust.json"


@dataclass(frozen=True)
class _Memory:
    """What the file holds."""

    format: str
    files: list[Entry]


def _read() -> list[Entry]:
    """All entries; none where the file is missing, damaged or another's."""
    try:
        # Opening a pipe would wait for a writer.
        handle = os.open(location(), os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or not _is_ours(about):
                return []
            memory = build(parse_json(file.read(1 << 24)), _Memory)
    except (OSError, RuntimeError, ValueError):
        return []
    return memory.files if memory.format == _FORMAT else []


def _is_ours(about: os.stat_result) -> bool:
    """Whether nobody else but the administrator can have written a file."""
    return about.st_uid in (os.geteuid(), 0) and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _write(path: Path, entries: list[Entry]) -> None:
    files = [dataclasses.asdict(entry) for entry in entries]
    content = json.dumps({"format": _FORMAT, "files": files}, indent=0).encode()

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)

    replace_file(path, write)
