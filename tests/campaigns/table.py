"""The campaigns that there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Case = Callable[[int, Path], str | None]


@dataclass(frozen=True)
class Campaign:
    """One kind of attempt.

    Attributes:
        name: Of its file in this folder.
        what: What is tried, in a few words, for the table.
        holds: What must be so in every case, in a few words.
        long: Cases of the long form.
        short: Cases of the short form, about ten seconds of them.
        seconds: After which a case counts as hung.
        forks: Whether a case forks the process that runs it. The short form then has its own, as
            what has computed gradients cannot compute any in a child.
    """

    name: str
    what: str
    holds: str
    long: int
    short: int
    seconds: float = 120.0
    forks: bool = False

    def case(self) -> Case:
        """Its function; what it imports is imported now."""
        return load(self.name)


CAMPAIGNS: tuple[Campaign, ...] = (
    Campaign(
        "hostile_bundles",
        "bundles, runs, recipes and pickles whose code wants to run",
        "nothing run without --trust, one line or the result from data",
        long=2000,
        short=36,
        seconds=60.0,
    ),
    Campaign(
        "ranks",
        "two processes that train together, one killed",
        "the run is resumed bit for bit, and no half-written file is left",
        long=20,
        short=1,
        seconds=400.0,
    ),
    Campaign(
        "starved",
        "commands with a full disk, no rights, few handles, little memory",
        "it works, or one line and old files whole; then it works without the limit",
        long=200,
        short=4,
        seconds=60.0,
        forks=True,
    ),
    Campaign(
        "forks",
        "forks while threads run sessions and thresholds",
        "the child runs them too, gives the same bytes and ends",
        long=200,
        short=20,
        seconds=40.0,
        forks=True,
    ),
    Campaign(
        "wrong_lines",
        "command lines wrong on purpose",
        "exit code 2, one line, nothing run or changed",
        long=1000,
        short=100,
        seconds=20.0,
    ),
    Campaign(
        "damage",
        "damaged files of every format",
        "exit code 2, one line, under 5 s and 1 GB; no changed file of ours is taken",
        long=20_000,
        short=80,
        seconds=30.0,
    ),
    Campaign(
        "ties",
        "targets over weights of few magnitudes, of any shape, method, granularity and type",
        "reached to one weight or group; the same after a state dict and a fold",
        long=1000,
        short=10,
        seconds=30.0,
    ),
    Campaign(
        "bad_samples",
        "data sets with samples that raise, are of another kind or NaN",
        "stopped by name in one line, or left out, the same in each pass",
        long=1000,
        short=60,
        seconds=30.0,
    ),
    Campaign(
        "kills",
        "`kill -9` of train, convert, fold, export, quantize, report, sweep, sensitivity, compare "
        "and demo, before any of their file-system calls or at any moment",
        "nothing is lost, the next run goes on, training bit for bit, and no half-written file "
        "is left",
        long=500,
        short=2,
        seconds=400.0,
    ),
)


def load(name: str) -> Case:
    """The function of the campaign in that file."""
    case: Case = importlib.import_module(f"tests.campaigns.{name}").case
    return case
