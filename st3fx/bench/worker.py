"""The process that a variant runs in: ``python -m st3fx.bench.worker PARENT``.

It takes a job as one line of JSON and answers when the model has been called once. Then each line
asks for calls: ``{"warm": seconds}`` or ``{"calls": n}`` is answered by their times, ``{}`` by the
peak of the memory. It ends when its input does, and with the parent, whose process id it is given,
in the middle of a call too.

How much memory a model takes in the process that it runs in.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from st3fx.bench.variant import Prepared, locate
from st3fx.errors import St3fxError, describe
from st3fx.processes import end_with_parent

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


def main() -> None:
    """Serve one variant."""
    end_with_parent(int(sys.argv[1]))
    # Ctrl-C reaches the whole group: the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the model's own code prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


def serve(orders: TextIO, answers: TextIO) -> None:
    """Answer line by line."""

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        _serve(orders, answer)
    except Exception as error:  # noqa: BLE001 (whatever a model or runtime raises is told)
        own = isinstance(error, St3fxError)
        answer(error=str(error) if own else describe(error, limit=400), ours=own)


def _serve(orders: TextIO, answer: Callable[..., None]) -> None:
    memory = Memory()
    prepared, seconds = load(json.loads(orders.readline()), memory)
    answer(runtime=prepared.runtime, provider=prepared.provider, load_seconds=seconds)
    # A collection in the middle of a call is no part of the model.
    gc.collect()
    gc.disable()
    for line in orders:
        order = json.loads(line)
        if "warm" in order:
            answer(seconds=warm(prepared.call, order["warm"]))
        elif "calls" in order:
            answer(seconds=timed(prepared.call, order["calls"]))
        else:
            answer(peak=memory.peak())


def load(job: dict[str, Any], memory: Memory) -> tuple[Prepared, float]:
    """Load a variant and call it once; the model and the seconds since its mark."""
    with np.load(job["inputs"]) as file:
        inputs = [file[f"arr_{index}"] for index in range(len(file.files))]
    began = time.perf_counter()

    def mark(held: int = 0) -> None:
        nonlocal began
        memory.mark(held)
        began = time.perf_counter()

    prepared = locate(job["prepare"])(inputs, job["threads"], mark, **job["arguments"])
    prepared.call()
    return prepared, time.perf_counter() - began


def warm(call: Callable[[], object], seconds: float) -> list[float]:
    """Call for so many seconds, at least once; the times of the calls."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(_timed(call))
    return times


def timed(call: Callable[[], object], calls: int) -> list[float]:
    """The times of so many calls, after one that is not timed.

    Before it another process ran: the caches hold its weights, and the threads of this one sleep.
    """
    call()
    return [_timed(call) for _ in range(calls)]


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
