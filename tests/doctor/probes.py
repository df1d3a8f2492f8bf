"""Probes that behave badly, for the child process of the doctor to find by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from st3fx.doctor.probe import AbsentError


def fine() -> str:
    os.write(1, b"noise from C code\n")
    sys.stdout.write("noise from Python\n")
    return "as it should be"


def raises() -> str:
    raise ValueError("broken\nin two lines")


def absent() -> str:
    raise AbsentError("not here", "get it")


def dies() -> str:
    os.write(2, b"some warning\nthe last words\n")
    os.kill(os.getpid(), signal.SIGSEGV)
    return "unreachable"


def exits() -> str:
    os._exit(3)


def hangs() -> str:
    time.sleep(60)
    return "unreachable"


def busy() -> str:
    note = Path(os.environ["NOTE"])
    part = note.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(note)
    while True:
        pass
