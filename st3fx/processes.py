"""Python modules as child processes: orders and answers are lines of JSON.

A child's own prints, by C code too, never mix with its answers. What goes wrong in a child is a
line of the parent's: an exception is a :class:`ChildError`, a death a :class:`ChildDiedError`.

A child ends when its parent does, however that ends. A parent that is killed tells nobody: on Linux
the kernel ends its children if they ask for it; and everywhere a thread looks whether the parent is
still the one that it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from st3fx.errors import St3fxError, describe

_PR_SET_PDEATHSIG = 1

INTERVAL = 1.0
"""Seconds between two looks at the parent."""

_WAIT = 10.0
"""Seconds that a child has to end by itself."""


class ChildError(Exception):
    """A child could not do what it was asked for.

    Attributes:
        ours: Whether it was an ``St3fxError``, whose message says what to do; the message of any
            other error begins with its type.
    """

    def __init__(self, message: str, *, ours: bool) -> None:
        super().__init__(message)
        self.ours = ours


class ChildDiedError(Exception):
    """A child ended without an answer; the message is one line.

    Attributes:
        code: Its exit code; the negative number of the signal that ended it.
        log: What it wrote to stderr.
    """

    def __init__(self, code: int, log: str, late: float | None = None) -> None:
        lines = log.strip().splitlines()
        last = f": {lines[-1].strip()[:200]}" if lines else ""
        how = f"with exit code {code}" if code >= 0 else f"by {signal_name(-code)}"
        super().__init__(
            f"its process ended {how}{last}" if late is None
            else f"it did not end within {late:g} s"
        )  # fmt: skip
        self.code = code
        self.log = log


class Child:
    """A module that serves orders in a process of its own: ``with Child("some.module") as child``.

    The module calls :func:`serve` when it runs as ``__main__``. It sees the modules that this
    process sees.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __enter__(self) -> Self:
        # A file, not a pipe: a pipe that is full and not read would stop the process.
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """End the process, at once after an error."""
        if kind is not None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # it died with an order unread
                pipe.close()
        try:
            self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._log.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def ask(self, order: Any, limit: float | None = None) -> dict[str, Any]:
        """Give an order and wait for the answer.

        Args:
            order: JSON values.
            limit: Seconds after which the child is ended.

        Raises:
            ChildError: When it raises.
            ChildDiedError: When it ends instead, or has not answered in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(limit or 0.0, end)
        if limit is not None:
            timer.start()
        try:
            # Where it is over already, the missing answer says so.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            log = self._log.read().decode(errors="replace")
            raise ChildDiedError(code, log, limit if late.is_set() else None)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildError(answer["error"], ours=answer["ours"])
        return answer


def signal_name(number: int) -> str:
    """``SIGKILL``, or ``signal 64`` where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(handle: Callable[[Any], dict[str, Any]]) -> None:
    """Answer the orders of the process that runs this module by a :class:`Child`, until it ends.

    Args:
        handle: Gives the answer to an order. What it raises is told as an error.
    """
    end_with_parent(int(sys.argv[1]))
    # Ctrl-C reaches the whole group: the parent decides what becomes of its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pipes are for the protocol alone, not for what the handler runs.
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    sys.stdout.flush()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    for line in orders:
        try:
            answer = handle(json.loads(line))
        except Exception as error:  # noqa: BLE001 (whatever it raises is told)
            ours = isinstance(error, St3fxError)
            answer = {"error": str(error) if ours else describe(error, limit=400), "ours": ours}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def end_with_parent(parent: int) -> None:
    """End this process, at once and whatever it is doing, when the parent has ended.

    Args:
        parent: Its process id, as it gives it itself: it may be gone already.
    """
    if sys.platform == "linux":
        _ask_kernel()
    watch_parent(parent)


def watch_parent(parent: int) -> None:
    """Do the same without help of the kernel, within :data:`INTERVAL`."""
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True).start()


def _ask_kernel() -> None:
    """Ask for a signal when the parent's thread that made this process ends: it waits for it."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (AttributeError, OSError):
        return  # the thread is left


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    # No clean end: what the process is busy with would delay it, or keep it for good.
    os._exit(1)
