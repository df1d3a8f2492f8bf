"""Folders that appear whole or not at all: written beside their destination, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
