"""Two processes train one model over gloo; one of them is killed, and the run is resumed."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaigns.kills import VERBS, Whole, prepare, results, server
from tests.killed import has_ended

VERB = VERBS["train"]
PATIENCE = 20.0
"""Seconds in which the other process ends by itself; a launcher would end it too."""


def case(seed: int, folder: Path) -> str | None:
    """Kill one of the two, before a file-system call of its or at any moment; go on; compare."""
    chance = random.Random(seed)
    expected, victim = whole(), seed % 2
    work = folder / "work"
    work.mkdir()
    prepare(work, "train")
    kill, delay = None, None
    if victim == 0 and chance.random() < 0.5:  # it is the main one that writes
        kill = chance.randrange(expected.calls)
    else:
        delay = chance.uniform(0, expected.seconds)
    codes = together(work, [], victim=victim, kill=kill, delay=delay)
    saved = any((work / "made" / "checkpoints").glob("*.pt"))
    begun = (work / "made" / "settings.toml").exists()
    again = ["--resume"] if saved else ["--force"] if begun else []
    if codes != [0, 0] and together(work, again) != [0, 0]:
        return f"{again or 'the same'} ended with an error: {said(work)}"
    now = results(work, VERB)
    if now != expected.left:
        return f"differs in {[key for key in expected.left if now.get(key) != expected.left[key]]}"
    left = [str(path.relative_to(work)) for path in (work / "made").rglob(".*")]
    return f"left {left}" if left else None


@functools.cache
def whole() -> Whole:
    """A run in which nobody is killed."""
    with tempfile.TemporaryDirectory(prefix="st3fx-ranks-") as text:
        work = Path(text) / "work"
        work.mkdir()
        prepare(work, "train")
        began, calls = time.monotonic(), [0]
        codes = together(work, [], calls=calls)
        assert codes == [0, 0], said(work)
        return Whole(calls[0], time.monotonic() - began, results(work, VERB))


def together(
    work: Path,
    more: list[str],
    *,
    victim: int | None = None,
    kill: int | None = None,
    delay: float | None = None,
    calls: list[int] | None = None,
) -> list[int]:
    """Train with two processes; their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    orders = [
        {
            "arguments": [*VERB.arguments, *more], "folder": str(work), "large": False,
            "kill": kill if rank == victim else None, "exchange": True,
            "log": str(log(work, rank)),
            "environment": {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
            },
        }
        for rank in range(2)
    ]  # fmt: skip
    ends = server().run(orders, None if victim is None else killer(victim, delay))
    if calls is not None:
        calls[0] = ends[0][1]
    return [code for code, _ in ends]


def killer(victim: int, delay: float | None) -> Callable[[list[int]], None]:
    """Kills one process after some time; the other, which waits for it, when it does not end."""

    def during(processes: list[int]) -> None:
        if delay is not None:
            time.sleep(delay)
            kill(processes[victim])
        while not has_ended(processes[victim]):
            time.sleep(0.02)
        until = time.monotonic() + PATIENCE
        while not has_ended(processes[1 - victim]) and time.monotonic() < until:
            time.sleep(0.02)
        kill(processes[1 - victim])

    return during


def kill(process: int) -> None:
    """End a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def log(work: Path, rank: int) -> Path:
    """What a process has said."""
    return work.parent / f"{rank}.log"


def said(work: Path) -> str:
    """The last line of each process."""
    lines = (log(work, rank).read_text(errors="replace").strip().splitlines() for rank in range(2))
    return "; ".join(line[-1][-200:] for line in lines if line)
