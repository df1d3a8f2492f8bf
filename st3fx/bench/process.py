"""A variant in a process of its own, seen from the benchmark."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from st3fx.bench.variant import Variant
from st3fx.errors import BenchError

_WAIT = 10.0
"""Seconds that a process has to end by itself."""


_ORT = re.compile(r"^\w+: \[ONNXRuntimeError\] : \d+ : \w+ : ")
"""What ONNX Runtime puts before its messages."""


class Process:
    """Loads a variant and times its calls: ``with Process(variant, inputs, threads) as process``.

    Attributes:
        ready: ``runtime``, ``provider`` and ``load_seconds``.
    """

    def __init__(self, variant: Variant, inputs: Path, threads: int) -> None:
        self.variant = variant
        self.ready: dict[str, Any] = {}
        self._job = {
            "prepare": variant.prepare,
            "arguments": dict(variant.arguments),
            "inputs": str(inputs),
            "threads": threads,
        }

    def __enter__(self) -> Self:
        """Start and load.

        Raises:
            BenchError: When the variant cannot be loaded or called.
        """
        # A file, not a pipe: a pipe that is full and not read would stop the process.
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "st3fx.bench.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            # It sees what this process sees.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            self.ready = self._ask(self._job)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process, at once after an error."""
        if kind is not None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # it died with an order unread
                pipe.close()
        try:
            self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def warm(self, seconds: float) -> list[float]:
        """Call for so many seconds, at least once; the seconds that each took."""
        times: list[float] = self._ask({"warm": seconds})["seconds"]
        return times

    def run(self, calls: int) -> array[float]:
        """Time so many calls, in seconds, after one that is not timed."""
        return array("d", self._ask({"calls": calls})["seconds"])

    def peak(self) -> int | None:
        """Bytes of memory at most, for loading and running."""
        peak: int | None = self._ask({})["peak"]
        return peak

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Where it is over already, the missing answer says so.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"] if answer["ours"] else self._refused(answer["error"]))
        return answer

    def _refused(self, reason: str) -> str:
        what = "ONNX Runtime" if "path" in self.variant.arguments else "PyTorch"
        return f"{what} cannot run {self.variant.name}: {_ORT.sub('', reason)}"

    def _died(self) -> BenchError | RuntimeError:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
            return BenchError(
                f"the process that ran {self.variant.name} was ended by {name}{hint}: try a "
                "smaller batch, or other kernels"
            )
        self._log.seek(0)
        return RuntimeError(f"the worker ended with {code}:\n{self._log.read().decode()}")
