"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from st3fx.errors import ExportError, St3fxError


@contextlib.contextmanager
def temporary_neighbour(target: Path) -> Iterator[Path]:
    """A fresh folder beside ``target``, on the same file system; gone afterwards if still there."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        # mkdtemp makes it private; the result has the rights of any other new folder.
        mask = os.umask(0)
        os.umask(mask)
        folder.chmod(0o777 & ~mask)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, target: Path) -> None:
    """Rename ``folder`` to ``target``, replacing what is there.

    What was there is renamed first and deleted last. It is put back when the second rename fails;
    should that fail too, it stays under its other name and is not deleted.

    Raises:
        OSError: When a rename fails.
    """
    if not target.exists():
        folder.rename(target)
        return
    old = folder.with_suffix(".old")
    target.rename(old)
    try:
        folder.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there as it was or as it is to be, whenever the power fails.

    Args:
        path: The file; one that is there is replaced in a single step.
        write: Writes the content.

    Raises:
        OSError: When it cannot be written, e.g. on a full disk. What was there is there still.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


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
            it is a folder, or where its folder is missing.
    """
    target = Path(path)
    if target.is_dir():
        raise error(f"{path} is a folder: name the file to write")
    if target.exists() and not force:
        raise error(f"{path} exists: choose another file, or replace it by --force")
    if in_folder and not target.parent.is_dir():
        raise error(f"cannot write {path}: there is no folder {target.parent}")
    return target
