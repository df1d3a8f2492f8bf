"""A lock that lies in a file and ends with the process that holds it, however that ends.

A child of a fork does not hold it, so that a data loader's workers, which outlive a killed process
by some seconds, keep nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Self

_held: set[FileLock] = set()
_hooked: list[bool] = []


class FileLock:
    """An exclusive lock on a file, not taken yet.

    Attributes:
        path: The file.
        is_sure: Whether this file system has locks; where it has none, everyone gets them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_sure = True
        self._file: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def take(self, *, make: bool = True, shared: bool = False) -> bool:
        """Take it without waiting; whether nobody else had it.

        Args:
            make: Whether the file is made where it is missing.
            shared: Whether others may have it as well, who share it too.

        Raises:
            OSError: When the file cannot be opened, e.g. as its folder is gone.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        file = os.open(self.path, flags, 0o666)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
                os.close(file)
                raise
            self.is_sure = False
        self._file = file
        _held.add(self)
        if not _hooked:
            _hooked.append(True)
            os.register_at_fork(after_in_child=_let_go)
        if not self._is_there(file):  # whoever had it removed the file
            self.release()
            return False
        return True

    def _is_there(self, file: int) -> bool:
        try:
            return os.path.samestat(self.path.lstat(), os.fstat(file))
        except FileNotFoundError:
            return False

    def write(self, content: bytes) -> None:
        """Replace what is in the file; the lock is held."""
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, content, 0)

    def read(self, limit: int = 1000) -> bytes:
        """The beginning of the file; the lock is held."""
        assert self._file is not None
        return os.pread(self._file, limit, 0)

    def release(self, *, remove: bool = False) -> None:
        """Let go of it; a child of a fork does not hold it and changes nothing.

        Args:
            remove: Whether the file goes too.
        """
        _held.discard(self)
        file, self._file = self._file, None
        if file is not None:
            if remove:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
            os.close(file)


def _let_go() -> None:
    """In a child of a fork: closing a copy of the descriptor leaves the parent its lock."""
    for lock in list(_held):
        lock.release()
