"""Variants without a model: they are imported by the processes that benchmarks start."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from st3fx.bench import onnx_call
from st3fx.bench.variant import Array, Mark, Prepared, Variant
from st3fx.errors import BenchError

PREPARE = f"{__name__}:prepare"
MEGABYTE = 1 << 20


def fake(name: str, **arguments: Any) -> Variant:
    """A variant that does what ``arguments`` say; its input is as large as the batch."""
    return Variant(
        name, PREPARE, {"name": name, **arguments}, lambda batch: [np.zeros(batch, np.float32)]
    )


def prepare(
    inputs: Sequence[Array],
    threads: int,
    mark: Mark,
    *,
    name: str,
    log: str | None = None,
    before: int = 0,
    held: int = 0,
    megabytes: int = 0,
    fails: str = "",
    fails_at: int = 0,
) -> Prepared:
    """Give back a call that fails, dies, holds memory, or writes its name into a log.

    Args:
        inputs: Their shapes are in the runtime's name.
        threads: As the shapes.
        mark: Called between ``before`` and ``megabytes``.
        name: For the log.
        log: A file.
        before: Megabytes to take and give back before the mark.
        held: Bytes to tell the mark.
        megabytes: To take while it is called.
        fails: How.
        fails_at: At which call, the first being 0.
    """
    sys.stdout.write("the model's own code prints\n")
    np.ones(before * MEGABYTE, np.int8)
    mark(held)
    calls = 0

    def call() -> None:
        nonlocal calls
        if fails and calls == fails_at:
            _FAILURES[fails]()
        calls += 1
        np.ones(megabytes * MEGABYTE, np.int8)
        if log is not None:
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(name)

    return Prepared(call, f"fake {inputs[0].shape} {threads}", "FakeProvider")


def shown(
    inputs: Sequence[Array], threads: int, mark: Mark, *, flush: bool = True, **arguments: Any
) -> Prepared:
    """ONNX Runtime, with what it computes in the runtime's name.

    In a process of its own alone: a session that flushes denormals sets the thread that calls it to
    do so for good.
    """
    if not flush:
        onnx_call.CONFIG.pop("session.set_denormal_as_zero")
    prepared = onnx_call.prepare(inputs, threads, mark, **arguments)
    outputs: Any = prepared.call()
    return Prepared(prepared.call, json.dumps(outputs[0].tolist()), prepared.runtime)


def _raise() -> None:
    raise ValueError("no such thing\nmore of it")


def _refuse() -> None:
    raise BenchError("give it something else")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> None:
    os.write(2, b"the last words")
    os._exit(3)


_FAILURES: dict[str, Callable[[], None]] = {
    "raise": _raise, "refuse": _refuse, "die": _die, "exit": _exit
}  # fmt: skip


def session(path: str, threads: int) -> Session:
    """A session factory of another runtime."""
    return Session(path, threads)


class Session:
    """As much of ONNX Runtime's session as a benchmark uses."""

    def __init__(self, path: str, threads: int) -> None:
        self._text = f"{Path(path).name} {threads}"

    def get_providers(self) -> list[str]:
        return ["Sparse"]

    def get_inputs(self) -> list[Any]:
        return [type("Port", (), {"name": "x"})]

    def run(self, outputs: None, feeds: dict[str, Array]) -> str:
        return f"{self._text} {sorted(feeds)}"
