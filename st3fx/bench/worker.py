"""The process that a variant runs in, as a child of the benchmark.

Its first order is a job, which is answered when the model has been called once. Then each order
asks for calls: ``{"warm": seconds}`` or ``{"calls": n}`` is answered by their times, ``{}`` by the
peak of the memory that the model takes in this process.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from st3fx.bench.variant import Prepared, locate
from st3fx.processes import serve

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


class Worker:
    """Answers the orders for one variant, of which the first has to be its job."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._call: Callable[[], object] | None = None

    def __call__(self, order: dict[str, Any]) -> dict[str, Any]:
        """Load, call, or tell of the memory."""
        if self._call is None:
            prepared, seconds = load(order, self._memory)
            self._call = prepared.call
            # A collection in the middle of a call is no part of the model.
            gc.collect()
            gc.disable()
            return {"runtime": prepared.runtime, "provider": prepared.provider,
                    "load_seconds": seconds}  # fmt: skip
        if "warm" in order:
            return {"seconds": warm(self._call, order["warm"])}
        if "calls" in order:
            return {"seconds": timed(self._call, order["calls"])}
        return {"peak": self._memory.peak()}


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
    serve(Worker())
