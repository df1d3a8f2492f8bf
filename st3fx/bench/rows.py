"""From measured seconds to rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from st3fx.bench.result import BenchRow, Ratio
from st3fx.bench.rounds import Timing
from st3fx.bench.variant import Variant


def make_rows(
    variants: Sequence[Variant], timings: Sequence[Timing], batch: int, threads: int
) -> list[BenchRow]:
    """One row for each variant; the first is the baseline of the others."""
    baseline = timings[0]
    return [
        _row(variant, timing, None if timing is baseline else ratio(baseline, timing),
             batch, threads)
        for variant, timing in zip(variants, timings, strict=True)
    ]  # fmt: skip


def ratio(baseline: Timing, timing: Timing) -> Ratio:
    """How many times as fast: the quartiles over rounds of the turns' median times."""
    rounds = [
        np.median(base) / np.median(own)
        for base, own in zip(baseline.turns, timing.turns, strict=True)
    ]
    low, middle, high = np.percentile(rounds, (25, 50, 75))
    return Ratio(float(middle), float(low), float(high))


def _row(
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
    )
