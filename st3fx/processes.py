"""Child processes that end with their parent, however that ends.

A parent that is killed tells nobody. On Linux the kernel ends its children if they ask for it; and
everywhere a thread looks whether the parent is still the one that it was.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1

INTERVAL = 1.0
"""Seconds between two looks at the parent."""


def end_with_parent(parent: int) -> None:
    """End this process, at once and whatever it is doing, when the parent has ended.

    Args:
        parent: Its process id, as it gives it itself: it may be gone already.
    """
    if sys.platform == "linux":
        _ask_kernel()
    watch_parent(parent)


def watch_parent(parent: int) -> None:
    """The same without help of the kernel, within :data:`INTERVAL`."""
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _ask_kernel() -> None:
    """The signal comes when the parent's thread that made this process ends: it waits for it."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (AttributeError, OSError):
        return  # the thread is left


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    # No clean end: what the process is busy with would delay it, or keep it for good.
    os._exit(1)
