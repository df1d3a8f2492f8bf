"""A lock that a fork cannot leave taken.

A child of a fork has one thread, and no other that would give back what it held. So each process
has a lock of its own. What the lock guards must be such that a half-done change does no harm.
"""

from __future__ import annotations

import os
import threading


class ProcessLock:
    """Among the threads of a process, one at a time; ``with lock:``."""

    def __init__(self) -> None:
        """Not taken."""
        self._locks: dict[int, threading.Lock] = {}

    def _own(self) -> threading.Lock:
        process = os.getpid()
        # In one step, so that all threads get the same one.
        return self._locks.get(process) or self._locks.setdefault(process, threading.Lock())

    def __enter__(self) -> None:
        self._own().acquire()

    def __exit__(self, *error: object) -> None:
        self._own().release()
