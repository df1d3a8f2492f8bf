"""Measures variants side by side: in rounds, in each of which every variant has its turn.

What slows the machine down slows neighbouring turns down alike, so the ratio of two turns of one
round holds where times of minutes apart would not. The order is drawn anew for every round. Each
variant has a process of its own.
"""

from __future__ import annotations

import contextlib
import random
import re
import statistics
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from st3fx.bench.variant import ROUNDS, BenchSettings, Variant
from st3fx.errors import BenchError
from st3fx.processes import Child, ChildDiedError, ChildError, signal_name

_ORT = re.compile(r"^\w+: \[ONNXRuntimeError\] : \d+ : \w+ : ")
"""What ONNX Runtime puts before its messages."""


class Process(Child):
    """Loads a variant and times its calls: ``with Process(variant, inputs, threads) as process``.

    Attributes:
        ready: ``runtime``, ``provider`` and ``load_seconds``.
    """

    def __init__(self, variant: Variant, inputs: Path, threads: int) -> None:
        super().__init__("st3fx.bench.worker")
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
        super().__enter__()
        with contextlib.ExitStack() as failed:
            failed.push(self)
            self.ready = self._measured(self._job)
            failed.pop_all()
        return self

    def warm(self, seconds: float) -> list[float]:
        """Call for so many seconds, at least once; the seconds that each took."""
        times: list[float] = self._measured({"warm": seconds})["seconds"]
        return times

    def run(self, calls: int) -> array[float]:
        """Time so many calls, in seconds, after one that is not timed."""
        return array("d", self._measured({"calls": calls})["seconds"])

    def peak(self) -> int | None:
        """Bytes of memory at most, for loading and running."""
        peak: int | None = self._measured({})["peak"]
        return peak

    def _measured(self, order: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.ask(order)
        except ChildError as error:
            raise BenchError(str(error) if error.ours else self._refused(str(error))) from None
        except ChildDiedError as death:
            raise self._died(death) from None

    def _refused(self, reason: str) -> str:
        what = "ONNX Runtime" if "path" in self.variant.arguments else "PyTorch"
        return f"{what} cannot run {self.variant.name}: {_ORT.sub('', reason)}"

    def _died(self, death: ChildDiedError) -> BenchError | RuntimeError:
        if death.code >= 0:
            return RuntimeError(f"the worker ended with {death.code}:\n{death.log}")
        name = signal_name(-death.code)
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return BenchError(
            f"the process that ran {self.variant.name} was ended by {name}{hint}: try a "
            "smaller batch, or other kernels"
        )


TURN = 0.1
"""Seconds of a turn, unless a single call takes longer."""

_CALLS = 1000


@dataclass(frozen=True)
class Timing:
    """What was measured of a variant.

    Attributes:
        turns: Seconds of the calls, for each round.
        peak: Bytes of memory at most.
        runtime: What ran it.
        provider: Of ONNX Runtime.
        load_seconds: Until the end of the first call.
    """

    turns: Sequence[Sequence[float]]
    peak: int | None
    runtime: str
    provider: str
    load_seconds: float


def measure(
    variants: Sequence[Variant],
    batch: int,
    threads: int,
    settings: BenchSettings,
    folder: Path,
    report: Callable[[str], None],
) -> list[Timing]:
    """Measure variants at one batch size with one number of threads.

    Args:
        variants: The first is the baseline.
        batch: Samples in a call.
        threads: For a call.
        settings: How long.
        folder: For the inputs.
        report: Called with what is under way.

    Returns:
        One for each variant.

    Raises:
        BenchError: When a variant cannot be loaded or called.
    """
    where = f"batch {batch}, threads {threads}"
    with contextlib.ExitStack() as stack:
        processes = []
        for index, variant in enumerate(variants):
            report(f"loading {variant.name} ({where})")
            path = folder / f"inputs-{index}.npz"
            np.savez(path, *variant.inputs(batch))
            processes.append(stack.enter_context(Process(variant, path, threads)))
        latencies = []
        for process in processes:
            report(f"warming up {process.variant.name} ({where})")
            latencies.append(statistics.median(process.warm(settings.warmup)))
        turns = _rounds(processes, latencies, settings, lambda text: report(f"{text} ({where})"))
        return [
            Timing(own, process.peak(), **process.ready)
            for process, own in zip(processes, turns, strict=True)
        ]


def _rounds(
    processes: Sequence[Process],
    latencies: Sequence[float],
    settings: BenchSettings,
    report: Callable[[str], None],
) -> list[list[array[float]]]:
    order = random.Random(settings.seed)
    turns: list[list[array[float]]] = [[] for _ in processes]
    spent = [0.0] * len(processes)
    plan = _by_count if settings.iterations else _by_time
    for number, calls in enumerate(plan(max(latencies), settings, spent), 1):
        for index in order.sample(range(len(processes)), len(processes)):
            times = processes[index].run(calls)
            turns[index].append(times)
            spent[index] += sum(times)
        share = _share(settings, number, sum(map(len, turns[0])), spent)
        report(f"round {number}, {share:.0%}: {_standing(processes, turns)}")
    return turns


def _share(settings: BenchSettings, rounds: int, calls: int, spent: Sequence[float]) -> float:
    """How much of the measurement is done."""
    if settings.iterations:
        return min(1.0, calls / settings.iterations)
    return min(1.0, rounds / ROUNDS, sum(spent) / (settings.seconds * len(spent)))


def _by_count(latency: float, settings: BenchSettings, spent: Sequence[float]) -> Iterator[int]:
    """Calls for each round until there are ``settings.iterations``."""
    total = settings.iterations or 0
    rounds = min(total, max(ROUNDS, round(total * latency / TURN), -(-total // _CALLS)))
    for number in range(rounds):
        yield (number + 1) * total // rounds - number * total // rounds


def _by_time(latency: float, settings: BenchSettings, spent: Sequence[float]) -> Iterator[int]:
    """Calls for each round until the calls took ``settings.seconds`` for each variant on average.

    Args:
        latency: Of the slowest variant.
        settings: For how long.
        spent: Seconds of each variant so far; grows between the rounds.
    """
    per_round = min(TURN, settings.seconds / ROUNDS)
    calls = min(_CALLS, max(1, round(per_round / latency)))
    number = 0
    while number < ROUNDS or sum(spent) < settings.seconds * len(spent):
        yield calls
        number += 1


def _standing(processes: Sequence[Process], turns: Sequence[Sequence[Sequence[float]]]) -> str:
    """``dense 3.1 ms, folded 3.0 ms``: the last round."""
    return ", ".join(
        f"{process.variant.name} {statistics.median(own[-1]) * 1e3:.3g} ms"
        for process, own in zip(processes, turns, strict=True)
    )
