"""Runs cases of a campaign, in this process or in processes of their own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.table import Campaign, Case, load

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Failure:
    """A case that did not hold, and what was seen."""

    seed: int
    seen: str


def attempt(case: Case, seed: int) -> str | None:
    """Run one case in an empty folder: ``None`` where it held."""
    with tempfile.TemporaryDirectory(prefix="st3fx-case-") as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            seen = case(seed, Path(folder))
        except Exception as error:  # noqa: BLE001  whatever escapes is what a campaign looks for
            last = traceback.extract_tb(error.__traceback__)[-1]
            seen = f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
        finally:
            os.chdir(before)
        return None if seen is None else _portable(seen, folder)


def _portable(seen: str, folder: str) -> str:
    """What was seen, without where this machine has the case and Python: it is published."""
    for path, name in ((folder, "CASE"), (sys.prefix, "PYTHON"), (str(ROOT), "ST3FX")):
        seen = seen.replace(path, name)
    return seen


def run(
    campaign: Campaign, seeds: Iterable[int], jobs: int, until: float = math.inf
) -> Iterator[Failure | None]:
    """Run cases in ``jobs`` processes side by side; yields each result as it comes.

    Args:
        campaign: Which.
        seeds: Its cases.
        jobs: How many at a time.
        until: On the monotonic clock, after which no further case begins.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for seed in seeds:
        waiting.put(seed)
    results: queue.SimpleQueue[Failure | _Done | None] = queue.SimpleQueue()
    for _ in range(jobs):
        arguments = (campaign, waiting, results, until)
        threading.Thread(target=_feed, args=arguments, daemon=True).start()
    busy = jobs
    while busy:
        result = results.get()
        if isinstance(result, _Done):
            busy -= 1
        else:
            yield result


class _Done:
    """After the last result of one of the processes."""


def _feed(
    campaign: Campaign,
    waiting: queue.SimpleQueue[int],
    results: queue.SimpleQueue[Failure | _Done | None],
    until: float,
) -> None:
    """Give seeds to a worker, and to a new one where that has died or hung, until none is left."""
    worker: _Worker | None = None
    while True:
        with contextlib.suppress(queue.Empty):
            seed = waiting.get_nowait()
            if time.monotonic() > until:
                break
            worker = worker or _Worker(campaign.name)
            seen = worker.ask(seed, campaign.seconds)
            if worker.has_ended:
                worker = None
            results.put(None if seen is None else Failure(seed, seen))
            continue
        break
    if worker is not None:
        worker.close()
    results.put(_Done())


class _Worker:
    """A process that runs cases when it is given their seeds."""

    def __init__(self, name: str) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.attempt", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, seed: int, seconds: float) -> str | None:
        """Run one case there; where the process ends or hangs, say so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        hung = threading.Event()

        def stop() -> None:
            hung.set()
            self.process.kill()

        # What is ready-made is built with the first case, so that gets more time.
        timer = threading.Timer(seconds + 120.0, stop)
        timer.start()
        began = time.monotonic()
        try:
            self.process.stdin.write(f"{seed}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if answer:
            seen: str | None = json.loads(answer)
            return seen
        self.close()
        code = self.process.returncode
        if hung.is_set():
            return f"hung: killed after {time.monotonic() - began:.0f} s"
        return f"the process ended by itself with {code}"

    @property
    def has_ended(self) -> bool:
        """Whether there is no process any more."""
        return self.process.returncode is not None

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _work(name: str) -> None:
    """Read seeds, run their cases, answer with a line of JSON each."""
    # Answers have a channel that nothing else of the process writes to.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        case = load(name)
        for line in sys.stdin:
            answers.write(json.dumps(attempt(case, int(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    _work(sys.argv[1])
