"""Processes that are killed, and what becomes of their children."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


@contextlib.contextmanager
def family(*args: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A Python process and the id of its child, the first number that it prints on a line."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, *args],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert parent.stdout is not None
    try:
        found = (int(line) for line in parent.stdout if line.strip().isdigit())
        yield parent, next(found)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits for somebody to take note of its end."""
    try:
        os.kill(process, 0)
        status = Path(f"/proc/{process}/stat")
        return Path("/proc/self").exists() and "Z" in status.read_text().rpartition(")")[2].split()
    except (ProcessLookupError, FileNotFoundError):
        return True


def ends(process: int, seconds: float = 30.0) -> bool:
    """Whether a process ends within some time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if has_ended(process):
            return True
        time.sleep(0.05)
    return False
