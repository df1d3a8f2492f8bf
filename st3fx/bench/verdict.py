"""What the numbers of a benchmark show, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from st3fx.bench.bench_result import BenchRow, Ratio
from st3fx.bench.variant import ROUNDS

CLEAR = 0.05
"""Least difference that is called one: the same computation in two processes differed by up to 4 %
in calls of 10 microseconds, and by 1 % in those of milliseconds."""

NOISE = 0.1
"""Interquartile range over the median from which a time, or a ratio, is called uncertain."""


def verdict(rows: Sequence[BenchRow], cores: int, isa: str = "") -> tuple[str, ...]:
    """Sentences on rows, the first of each batch size and number of threads being the baseline.

    Args:
        rows: The whole benchmark.
        cores: Physical cores that could be used.
        isa: The instructions of the kernels that skip zeros.
    """
    best = _fastest(rows)
    return (
        *_named(rows[0].name, best, isa), *_comparisons(rows, best), *_zeros(rows), *_noise(rows),
        *_threads(rows, cores),
    )  # fmt: skip


def judge(row: BenchRow) -> str:
    """``faster``, ``slower`` or ``equal``: beyond the middle half of the rounds, and by 5 %."""
    assert row.ratio is not None
    if row.ratio.low > 1 and row.ratio.median > 1 + CLEAR:
        return "faster"
    if row.ratio.high < 1 and row.ratio.median < 1 / (1 + CLEAR):
        return "slower"
    return "equal"


def _fastest(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """One row of each batch size and number of threads, where there are several to choose from."""
    found = []
    for place in dict.fromkeys((row.batch, row.threads) for row in rows):
        compared = [row for row in rows if row.ratio and (row.batch, row.threads) == place]
        faster = [row for row in compared if judge(row) == "faster"]
        if len(compared) > 1 and faster:
            found.append(max(faster, key=lambda row: row.ratio.median if row.ratio else 0.0))
    return found


def _named(baseline: str, best: Sequence[BenchRow], isa: str) -> Iterator[str]:
    """One sentence for each variant that is the fastest somewhere."""
    for name in dict.fromkeys(row.name for row in best):
        group = [row for row in best if row.name == name]
        kernels = f", by kernels for {isa}" if isa and group[0].skips_zeros else ""
        said = f"{_range([row.ratio for row in group])} as fast as {baseline}"
        int8 = [row.int8_ratio for row in group if row.int8_ratio is not None]
        if int8:
            said += f" and {_range(int8)} as fast as dense INT8"
        yield f"Fastest: {name}{kernels}, {said}, {_places(group)}."


def _comparisons(rows: Sequence[BenchRow], told: Sequence[BenchRow]) -> Iterator[str]:
    """One sentence for each variant and judgement, with the places where it holds.

    Args:
        rows: The whole benchmark.
        told: Of these more has been said.
    """
    baseline = rows[0].name
    compared = [row for row in rows if row.ratio is not None]
    if not compared:
        yield f"{baseline} stands alone: there is nothing to compare it with."
    groups: dict[tuple[str, str], list[BenchRow]] = {}
    for row in (row for row in compared if row not in told):
        groups.setdefault((row.name, judge(row)), []).append(row)
    for (name, judgement), group in groups.items():
        range_ = _range([row.ratio for row in group])
        if judgement == "faster":
            text = f"{name}: faster than {baseline}, {range_} as fast"
        elif judgement == "slower":
            text = f"{name}: slower than {baseline}, {range_} as fast"
        else:
            text = f"{name}: no faster than {baseline} beyond noise, {range_} as fast"
        yield f"{text}, {_places(group)}."


def _range(found: Sequence[Ratio | None]) -> str:
    """``1.51 times (half of the rounds from 1.48 to 1.55)``."""
    ratios = [ratio for ratio in found if ratio is not None]
    if len(ratios) == 1:
        only = ratios[0]
        middle = f"half of the rounds from {only.low:.2f} to {only.high:.2f}"
        return f"{only.median:.2f} times ({middle})"
    lowest, highest = (f"{pick(r.median for r in ratios):.2f}" for pick in (min, max))
    return f"{lowest} times" if lowest == highest else f"{lowest} to {highest} times"


def _places(group: Sequence[BenchRow]) -> str:
    batches = sorted({row.batch for row in group})
    threads = sorted({row.threads for row in group})
    if len(group) == len(batches) * len(threads):
        noun = "thread" if threads == [1] else "threads"
        return f"at batch {_list(batches)} with {_list(threads)} {noun}"
    return "at " + _list([f"batch {row.batch} with {_count(row.threads)}" for row in group])


def _zeros(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Why zeros do not pay, and what they could be worth."""
    wasted = {row.name: row for row in rows if _sparser(row, rows[0]) and judge(row) != "faster"}
    if wasted:
        runtime = rows[0].runtime.partition(" ")[0]
        shares = _list([f"{name} ({row.sparsity:.1%} of its weights)" for name, row in
                        wasted.items()])  # fmt: skip
        yield (
            f"{_RUNTIMES.get(runtime, runtime)} multiplies zeros like any other number: those of "
            f"{shares} save no time here, only disk and download, where files are compressed."
        )
        if not any(row.skips_zeros for row in rows):
            bounds = [f"{name} at most {row.bound:.2f} times as fast" for name, row in
                      wasted.items() if row.bound]  # fmt: skip
            limit = f": they could make {_list(bounds)}, if time went by multiplications"
            yield f"What helps is a runtime with kernels that skip zeros{limit if bounds else ''}."
    for row in rows:
        # Integers gain by themselves: what zeros gain shows against dense ones.
        gained = row.int8_ratio if row.integers and not rows[0].integers else row.ratio
        if row.skips_zeros and row.bound and gained is not None:
            yield (
                f"{row.name}: {gained.median:.2f} of the {row.bound:.2f} times that the "
                f"multiplications left allow, at batch {row.batch} with {_count(row.threads)}."
            )


def _sparser(row: BenchRow, baseline: BenchRow) -> bool:
    """Whether the ratio tells what zeros are worth: more of them, in the same runtime."""
    return (
        row.ratio is not None
        and not row.skips_zeros
        and row.runtime == baseline.runtime
        and baseline.sparsity is not None
        and (row.sparsity or 0.0) > baseline.sparsity
    )


_RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}


def _noise(rows: Sequence[BenchRow]) -> Iterator[str]:
    """Warnings about what the numbers do not tell."""
    compared = [row for row in rows if row.ratio is not None]
    widest = max(rows, key=lambda row: row.spread_ms / row.median_ms)
    share = widest.spread_ms / widest.median_ms
    if share > NOISE:
        ratios = ", the ratios, taken round by round, beyond it" if compared else ""
        yield (
            f"The machine was not quiet: the middle half of the calls of {widest.name} spans "
            f"{share:.0%} of their median. The times hold for this moment{ratios}."
        )
    wide = [row.name for row in compared if _is_wide(row.ratio)]
    if wide:
        names = _list(list(dict.fromkeys(wide)))
        yield (
            f"The rounds do not agree on {names}, by more than {NOISE:.0%}: measure longer (-t), "
            "or on a quiet machine."
        )
    fewest = min(row.rounds for row in rows)
    if compared and fewest < ROUNDS:
        yield f"Quartiles of {fewest} rounds say little: measure longer, with at least {ROUNDS}."


def _is_wide(ratio: Ratio | None) -> bool:
    return ratio is not None and ratio.high - ratio.low > NOISE * ratio.median


def _threads(rows: Sequence[BenchRow], cores: int) -> Iterator[str]:
    most = max(row.threads for row in rows)
    if most > cores:
        yield (
            f"{most} threads share {cores} {'core' if cores == 1 else 'cores'}: they take turns, "
            "and the times say little about a machine with more cores."
        )


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _list(items: Sequence[object]) -> str:
    """``1, 2 and 3``."""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
