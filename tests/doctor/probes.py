"""Probes that behave badly, for the child process of the doctor to find by name."""

from __future__ import annotations

import os
import signal
import sys
import time

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
