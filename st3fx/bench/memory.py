"""How much memory a model takes in the process that it runs in."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Memory:
    """The rise of this process's resident memory over what it was at the mark.

    Linux keeps the highest value, right to some hundred kB, and lets a process reset it; elsewhere
    nothing is measured.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._held = 0

    def mark(self, held: int = 0) -> None:
        """Count from here on; ``held`` bytes of the model are there already."""
        gc.collect()
        _trim()
        try:
            _RESET.write_text("5", encoding="ascii")  # 5: the peak becomes what is resident now
        except OSError:
            return
        self._before, self._held = _status("VmRSS"), held

    def peak(self) -> int | None:
        """Bytes at most since the mark; ``None`` where the system does not tell."""
        highest = _status("VmHWM")
        if self._before is None or highest is None:
            return None
        return highest - self._before + self._held


def _trim() -> None:
    """Give freed memory back, which would otherwise be used again without a rise."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # not glibc


def _status(key: str) -> int | None:
    try:
        text = _STATUS.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
