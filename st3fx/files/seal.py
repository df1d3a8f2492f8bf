"""A digest in a zip file's own comment: what ``torch.save`` writes is checked before it is read.

The comment is the end of such a file; other readers leave it alone. It holds the SHA-256 of all
that is before it, as it was with an empty comment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from st3fx.files.ours import SEAL
from st3fx.files.reading import DamageError, check_regular

_CHUNK = 1 << 20
_LENGTH = len(SEAL) + 64


class _Hashed:
    """A file that is written to while its digest is computed beside, in another thread."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self.digest = hashlib.sha256()
        self._file, self._pool = file, pool

    def write(self, data: bytes) -> int:
        hashing = self._pool.submit(self.digest.update, data)
        try:
            return self._file.write(data)
        finally:
            hashing.result()

    def flush(self) -> None:
        self._file.flush()


def write_sealed(file: BinaryIO, write: Callable[[Any], object]) -> None:
    """Write a zip file and its digest.

    Args:
        file: Empty, opened for writing.
        write: Writes the zip, without a comment, to what it is given.
    """
    with ThreadPoolExecutor(1) as pool:
        hashed = _Hashed(file, pool)
        write(hashed)
    seal = SEAL + hashed.digest.hexdigest().encode()
    # The last two bytes are the length of the comment.
    file.seek(-2, os.SEEK_END)
    file.write(len(seal).to_bytes(2, "little") + seal)


def check_sealed(path: Path) -> None:
    """Fail unless a file is what :func:`write_sealed` wrote.

    Raises:
        OSError: When it cannot be read.
        DamageError: When it is something else, or was damaged or edited since.
    """
    check_regular(path)
    with path.open("rb") as file:
        rest = file.seek(0, os.SEEK_END) - _LENGTH - 2
        file.seek(max(0, rest))
        end = file.read()
        if rest < 0 or end[:2] != _LENGTH.to_bytes(2, "little") or end[2:-64] != SEAL:
            raise DamageError("has no digest of st3fx at its end")
        digest = hashlib.sha256()
        file.seek(0)
        while rest:
            chunk = file.read(min(rest, _CHUNK))
            if not chunk:
                raise DamageError("became shorter while it was read")
            digest.update(chunk)
            rest -= len(chunk)
    digest.update(b"\0\0")
    if digest.hexdigest().encode() != end[-64:]:
        raise DamageError("was damaged or edited after it was written, as its digest says")
