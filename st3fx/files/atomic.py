"""Files and folders that appear whole or not at all: written beside their place, then renamed.

All that is half-written lies in a folder ``.NAME.XXXXXXXX.part`` beside its place, which holds

    st3fx-writes-here    says so; its writer holds a lock on it, which a dead process does not
    new/                 what is being written
    old/                 where two folders cannot be exchanged in one step: the one before
    journal              what the last renames are, once nothing else is left to do

What a killed process left is known by this name, that text and the missing lock, and by nothing
less. :func:`tidy` ends the renames of a journal, or takes them back, and removes the rest; whoever
writes into a folder does so first. Links are followed; nothing but files and folders is replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from st3fx.errors import ExportError, St3fxError
from st3fx.files.lock import FileLock
from st3fx.files.reading import DamageError, build, parse_json, read_bytes

MARK = "st3fx-writes-here"
TEXT = b"st3fx writes into this folder, and removes it. When no st3fx runs any more, you may too.\n"
_JOURNAL = "journal"
_SPARE = 5


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        os.close(handle)


@contextlib.contextmanager
def temporary_neighbour(target: Path, *, private: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``target``, on the same file system; gone afterwards if still there.

    Args:
        target: Where its content is to go: by :func:`put_in_place` or :func:`move_into_place`.
        private: Whether nobody else may look into it.

    Raises:
        OSError: When it cannot be made.
    """
    tidy(target.parent)
    spare: list[int] = []  # handles: where no others are left, removing needs some
    try:
        for _ in range(_SPARE):
            spare.append(os.open(os.devnull, os.O_RDONLY))  # noqa: PERF401 (one may fail)
        part, lock = _make(target, 0o700 if private else 0o777)
    except BaseException:
        _close(spare)
        raise
    try:
        (part / "new").mkdir()
        yield part / "new"
    finally:
        _close(spare)
        with lock, contextlib.suppress(OSError):
            try:
                _settle(part)
            except KeyboardInterrupt:  # who stops a command, does so mostly while it does this
                _settle(part)
                raise


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder among the system's temporary ones; what a killed process left of such is removed."""
    with temporary_neighbour(Path(tempfile.gettempdir()) / "st3fx", private=True) as folder:
        yield folder


def _make(target: Path, mode: int) -> tuple[Path, FileLock]:
    """The folder for what is half-written, and the lock that says that its writer lives."""
    while True:
        part = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}.part")
        part.mkdir(mode)
        lock = FileLock(part / MARK)
        try:
            # Whoever tidied in this very moment may have taken the folder for a dead one's.
            if lock.take():
                lock.write(TEXT)
                return part, lock
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise
        except BaseException:
            lock.release()
            with contextlib.suppress(OSError):  # no tree: looking into a folder needs a handle
                (part / MARK).unlink(missing_ok=True)
                part.rmdir()
            raise


def tidy(folder: Path) -> None:
    """End what killed processes began in ``folder``, and remove what they left half-written.

    What a living process writes stays, as does all that is not known to be of st3fx.
    """
    try:
        parts = list(folder.glob(".*.part"))
    except OSError:
        return
    for part in parts:
        with contextlib.suppress(OSError):
            _tidy(part)


def _tidy(part: Path) -> None:
    about = part.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        return  # in a folder that all may write to, its journal might be anybody's
    if not (part / MARK).is_file():
        part.rmdir()  # killed before it wrote anything: it is empty, or not ours
        return
    with FileLock(part / MARK) as lock:
        if not (lock.take(make=False) and lock.is_sure):
            return
        text = lock.read(len(TEXT) + 1)
        if text == TEXT:
            _settle(part)
        elif TEXT.startswith(text):  # killed before it wrote more
            (part / MARK).unlink()
            part.rmdir()


def recover(path: Path) -> None:
    """Find what is missing because a process was killed between two renames."""
    if not path.exists():
        tidy(path.parent)


def _settle(part: Path) -> None:
    """End or take back the last renames of a folder, and remove it; its lock is held.

    Raises:
        OSError: When a rename fails: all stays then, for the next attempt.
    """
    journal = _read_journal(part)
    if journal.files is not None:
        _move(part, journal.files, journal.removed)
    elif journal.folder is not None:
        target, old = part.with_name(journal.folder), part / "old"
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (old, part / "new"):
            _give_back(left, target, journal.ours)
    # The mark goes last, so that a removal that is stopped is gone on with.
    for path in sorted(part.iterdir(), key=lambda path: (path.name == MARK, path.name != _JOURNAL)):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    part.rmdir()


def _write_journal(part: Path, content: dict[str, Any]) -> None:
    draft = part / f"{_JOURNAL}.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(part / _JOURNAL)


@dataclass(frozen=True)
class _Journal:
    """What the last renames are: of a folder, or of files out of one."""

    folder: str | None = None
    ours: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()


def _read_journal(part: Path) -> _Journal:
    """What :func:`_write_journal` wrote; empty where nothing was, or it names other folders."""
    try:
        found = build(parse_json(read_bytes(part / _JOURNAL, 1 << 24)), _Journal)
    except (OSError, DamageError):
        return _Journal()
    names = [*found.ours, *(found.files or ()), *found.removed, found.folder or "folder"]
    plain = all(name == Path(name).name and name not in ("", ".", "..") for name in names)
    return found if plain else _Journal()


def put_in_place(folder: Path, target: Path, ours: Collection[str]) -> None:
    """Make the folder of :func:`temporary_neighbour` be ``target``, in one step where possible.

    Args:
        folder: What was written.
        target: Its place. In a folder that is there, files of other names than ``ours`` stay.
        ours: Names of the files that st3fx writes into such a folder.

    Raises:
        OSError: When a rename fails. What was there is there still, or will be by :func:`tidy`.
    """
    part = folder.parent
    if not target.exists():
        try:
            folder.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
        else:
            return
    _link_others(target, folder, ours)
    _write_journal(part, {"folder": target.name, "ours": sorted(ours)})
    if not _exchange(folder, target):
        old = part / "old"
        target.rename(old)
        try:
            folder.rename(target)
        except BaseException:
            old.rename(target)
            raise
    for left in (part / "old", folder):
        _give_back(left, target, ours)


def _others(folder: Path, ours: Collection[str]) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name not in ours]


def _link_others(source: Path, target: Path, ours: Collection[str]) -> None:
    """Have what is not ours in both folders: removing one of them loses nothing."""
    for name in _others(source, ours):
        entry = source / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target / name, symlinks=True, copy_function=_link)
        else:
            _link(entry, target / name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def _give_back(left: Path, target: Path, ours: Collection[str]) -> None:
    """Move what came into a folder while it was replaced to the one that has its place now."""
    if not (left.is_dir() and target.is_dir()):
        return
    for name in _others(left, ours):
        if not os.path.lexists(target / name):
            (left / name).rename(target / name)


_EXCHANGE = 2
_HERE = -100


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; ``False`` where the system or the file system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None or not sys.platform.startswith("linux"):
        return False
    sys.audit("os.rename", str(first), str(second), -1, -1)
    return bool(function(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


def move_into_place(folder: Path, names: Sequence[str], removed: Collection[Path] = ()) -> None:
    """Move files out of the folder of :func:`temporary_neighbour`, all of them or, for now, none.

    A process that is killed in between leaves the rest to :func:`tidy`.

    Args:
        folder: What was written.
        names: Of its files, in the order in which they are moved; what is there is replaced.
        removed: Files beside their place that go before.

    Raises:
        OSError: When a file cannot be moved, or something that is no file is in its place.
    """
    part = folder.parent
    for name in names:
        require_file(part.with_name(name))
    journal = {"files": list(names), "removed": [path.name for path in removed]}
    _write_journal(part, journal)
    _move(part, journal["files"], journal["removed"])


def _move(part: Path, names: Sequence[str], removed: Sequence[str]) -> None:
    """Do what is left of it: what was moved already is in the folder no more."""
    waiting = [name for name in names if (part / "new" / name).exists()]
    for name in removed:
        if name not in names or name in waiting:
            part.with_name(name).unlink(missing_ok=True)
    for name in waiting:
        (part / "new" / name).replace(part.with_name(name))


def require_file(path: Path) -> None:
    """Fail unless a file may be written to ``path``: nothing is there, or a file.

    Raises:
        OSError: When it is a link, a folder, a device or a pipe.
    """
    with contextlib.suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind):
            what = "a link" if stat.S_ISLNK(kind) else "no file but a folder, device or pipe"
            raise OSError(errno.EINVAL, f"{path} is {what}: choose another place")


def followed(path: Path) -> Path:
    """The path itself, or what a link there points at, which need not be there yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there as it was or as it is to be, whenever the power fails.

    Args:
        path: The file; one that is there is replaced in a single step. A link is followed.
        write: Writes the content.

    Raises:
        OSError: When it cannot be written, e.g. on a full disk, or a device or a pipe is there.
            What was there is there still.
    """
    path = followed(path)
    require_file(path)
    with temporary_neighbour(path) as folder:
        part = folder / "file"
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    _sync_folder(path.parent)


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into one folder, all of them or, when one cannot be written, none.

    Args:
        folder: Where; it is made if the one above it is there.
        contents: Name -> content, in the order in which they appear.

    Raises:
        OSError: As :func:`replace_file`.
    """
    folder.mkdir(exist_ok=True)
    names = list(contents)
    with temporary_neighbour(folder / names[0]) as part:
        for name in names:
            with (part / name).open("wb") as file:
                file.write(contents[name])
                file.flush()
                os.fsync(file.fileno())
        move_into_place(part, names)
    _sync_folder(folder)


def copy_file(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source`` in a single step, without copying where possible.

    ``source`` is later replaced, never written to, so that both may share their bytes.

    Raises:
        OSError: When it cannot be written; the old file is there still.
    """
    with temporary_neighbour(target) as folder:
        try:
            (folder / "file").hardlink_to(source)
            (folder / "file").replace(target)
            # Where both were the same file already, the rename did nothing.
            return
        except OSError:  # a file system without hard links
            pass
    with source.open("rb") as content:
        replace_file(target, lambda file: shutil.copyfileobj(content, file))


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` last; where folders cannot be opened there is nothing to do."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file(
    path: str | Path,
    *,
    force: bool,
    error: type[St3fxError] = ExportError,
    in_folder: bool = False,
) -> Path:
    """Fail early if a file cannot be written. Writes nothing.

    Args:
        path: The file.
        force: Whether one that is there may be replaced.
        error: Raised.
        in_folder: Whether its folder must be there.

    Raises:
        St3fxError: Of the class ``error``: when something is there and ``force`` is not given, when
            it is no file but a folder, device or pipe, or where its folder is missing.
    """
    target = Path(path)
    recover(target)
    if target.is_dir():
        raise error(f"{path} is a folder: name the file to write")
    if target.exists() and not target.is_file():
        raise error(f"{path} is a device or a pipe: name the file to write")
    if target.exists() and not force:
        raise error(f"{path} exists: choose another file, or replace it by --force")
    if in_folder and not target.parent.is_dir():
        raise error(f"cannot write {path}: there is no folder {target.parent}")
    check_place(target, error)
    return target


def check_place(target: Path, error: type[St3fxError]) -> None:
    """Fail early where the folder of a file or folder cannot be made or written to.

    Raises:
        St3fxError: Of the class ``error``.
    """
    above = target.absolute().parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise error(f"cannot write {target}: {above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise error(f"cannot write {target}: the folder {above} may not be written to")
