"""What a benchmark measured: rows made of seconds, which turn themselves into JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st3fx.bench.rounds import Timing
from st3fx.bench.variant import Variant
from st3fx.errors import BenchError
from st3fx.files.atomic import replace_file
from st3fx.files.reading import (
    DIGEST,
    Count,
    DamageError,
    Format,
    Positive,
    Share,
    Size,
    Some,
    sealed,
)

FORMAT = "st3fx-bench"
FORMAT_VERSION = 3
"""Raised when a file of this version could not be read by the version before; 3 has a digest."""

FILE = Format(BenchError, "write it anew by st3fx bench -x")


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline: above 1 is faster.

    Of the baseline's time over the variant's, one number for each round, in which both ran within
    a moment of each other.

    Attributes:
        median: Over the rounds.
        low: Lower quartile.
        high: Upper quartile.
    """

    median: Positive
    low: Size
    high: Positive


@dataclass(frozen=True)
class BenchRow:
    """One variant at one batch size, with one number of threads.

    Attributes:
        name: ``dense``, ``folded``, ``sparse kernels``, ``dense INT8``, ``sparse INT8 kernels``,
            ``torch eager``, ``torch compile``, or the name of a file. Unique among the rows of a
            batch size and number of threads.
        runtime: What ran it, with its version.
        provider: Of ONNX Runtime, e.g. ``CPUExecutionProvider``; empty for other runtimes.
        batch: Samples in one call: the size of dimension 0.
        threads: That one call may use.
        median_ms: Of the calls, in milliseconds.
        p95_ms: 95 of 100 calls took at most this.
        spread_ms: Interquartile range of the calls.
        items_per_second: Samples over the time that all calls took together.
        ratio: To the baseline of the same batch size and threads; ``None`` for the baseline.
        peak_memory: Bytes of resident memory at most, while loading and running, beyond what the
            process held before; ``None`` where the system does not tell. Compare it within one
            runtime: of ONNX Runtime its own code is in it, of PyTorch that was there before.
        iterations: Calls that were timed.
        rounds: Into which they were split.
        load_seconds: For loading and the first call together.
        sparsity: Share of zeros among the weights that multiply; ``None`` where not known.
        bound: How many times as fast as without zeros it can be at most if time goes by
            multiplications; ``None`` where not known, or where none is left. Of a row in integers
            it is to be compared with ``int8_ratio``, where there is one.
        skips_zeros: Whether its kernels leave zeros out.
        integers: Whether its products are of 8-bit integers.
        int8_ratio: To the dense row in integers of the same batch size and threads; ``None`` for
            that row, where there is none, and where it is the baseline.
    """

    name: str
    runtime: str
    provider: str
    batch: Count
    threads: Some
    median_ms: Positive
    p95_ms: Positive
    spread_ms: Size
    items_per_second: Size
    ratio: Ratio | None
    peak_memory: int | None
    iterations: Some
    rounds: Some
    load_seconds: Size
    sparsity: Share | None = None
    bound: Size | None = None
    skips_zeros: bool = False
    integers: bool = False
    int8_ratio: Ratio | None = None


@dataclass(frozen=True)
class BenchResult:
    """A whole benchmark.

    Attributes:
        model: A short name for what was measured.
        rows: By batch size, then threads; the first of each is the baseline.
        settings: How it was measured, as JSON values.
        environment: Versions, processor and cores, as JSON values.
        command: What measures it again.
        verdict: What the numbers show, in sentences.
    """

    model: str
    rows: tuple[BenchRow, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    command: str
    verdict: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "verdict": list(self.verdict),
        }
        return sealed(values)

    @classmethod
    def from_dict(cls, data: Any, where: object = "the benchmark") -> BenchResult:
        """The inverse of :meth:`to_dict`.

        Args:
            data: JSON values.
            where: What they were read from, for messages.

        Raises:
            BenchError: When it is something else, or from a newer version.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BenchError(f"{where} is not the result of st3fx bench: write one with -x")
        version = data.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise BenchError(
                f"{where} has format {version!r}, and this st3fx reads up to {FORMAT_VERSION}: "
                "upgrade st3fx"
            )
        if version >= 3 or DIGEST in data:
            data = FILE.unsealed(data, where)
        plain = {key: data[key] for key in data if key not in ("format", "format_version")}
        made = FILE.build(plain, cls, where)
        seen: set[tuple[int, int]] = set()
        for index, row in enumerate(made.rows):
            if (row.batch, row.threads) not in seen and row.ratio is not None:
                FILE.fail(where, DamageError(f"rows[{index}].ratio: the baseline has none"))
            seen.add((row.batch, row.threads))
        return made

    def write(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all; one that is there is replaced.

        Raises:
            BenchError: When it cannot be written.
        """
        content = (json.dumps(self.to_dict(), indent=1) + "\n").encode()
        try:
            replace_file(Path(path), lambda file: file.write(content))
        except OSError as error:
            raise BenchError(f"cannot write {path}: {error.strerror or error}") from error


def read_result(path: str | Path) -> BenchResult:
    """Read what :meth:`BenchResult.write` wrote.

    Raises:
        BenchError: When it is missing, damaged, something else, or from a newer version.
    """
    return BenchResult.from_dict(FILE.json(FILE.content(path), path), path)


def make_rows(
    variants: Sequence[Variant], timings: Sequence[Timing], batch: int, threads: int
) -> list[BenchRow]:
    """One row for each variant; the first is the baseline of the others."""
    pairs = list(zip(variants, timings, strict=True))
    dense = (timing for variant, timing in pairs if variant.integers and variant.sparsity == 0)
    baseline, integers = timings[0], next(dense, None)
    if integers is baseline:
        integers = None

    def compared(other: Timing | None, timing: Timing) -> Ratio | None:
        return None if other is None or other is timing else ratio(other, timing)

    return [
        dataclasses.replace(
            _row_of(variant, timing, compared(baseline, timing), batch, threads),
            int8_ratio=compared(integers, timing),
        )
        for variant, timing in pairs
    ]


def ratio(baseline: Timing, timing: Timing) -> Ratio:
    """How many times as fast: the quartiles over rounds of the turns' median times."""
    rounds = [
        np.median(base) / np.median(own)
        for base, own in zip(baseline.turns, timing.turns, strict=True)
    ]
    low, middle, high = np.percentile(rounds, (25, 50, 75))
    return Ratio(float(middle), float(low), float(high))


def _row_of(
    variant: Variant, timing: Timing, compared: Ratio | None, batch: int, threads: int
) -> BenchRow:
    seconds = np.concatenate([np.asarray(turn) for turn in timing.turns])
    low, middle, high, slow = np.percentile(seconds * 1e3, (25, 50, 75, 95))
    return BenchRow(
        name=variant.name,
        runtime=timing.runtime,
        provider=timing.provider,
        batch=batch,
        threads=threads,
        median_ms=float(middle),
        p95_ms=float(slow),
        spread_ms=float(high - low),
        items_per_second=batch * len(seconds) / float(seconds.sum()),
        ratio=compared,
        peak_memory=timing.peak,
        iterations=len(seconds),
        rounds=len(timing.turns),
        load_seconds=timing.load_seconds,
        sparsity=variant.sparsity,
        bound=variant.bound,
        skips_zeros=variant.skips_zeros,
        integers=variant.integers,
    )
