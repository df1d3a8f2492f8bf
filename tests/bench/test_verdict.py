"""What is said about numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from st3fx.bench.bench_result import BenchRow, Ratio
from st3fx.bench.verdict import judge, verdict
from tests.bench.made import row

DENSE = row("dense", sparsity=0.0)


@pytest.mark.parametrize(
    ("low", "median", "high", "judgement"),
    [
        (1.40, 1.50, 1.60, "faster"),
        (0.99, 1.50, 1.60, "equal"),  # a quarter of the rounds was slower
        (1.02, 1.04, 1.06, "equal"),  # as two processes with the same file may differ
        (0.60, 0.70, 0.80, "slower"),
        (0.60, 0.70, 1.01, "equal"),
        (0.94, 0.96, 0.99, "equal"),
        (1.00, 1.00, 1.00, "equal"),
    ],
)
def test_judgement(low: float, median: float, high: float, judgement: str) -> None:
    assert judge(row("folded", (low, median, high))) == judgement


def test_zeros_that_do_not_pay() -> None:
    said = verdict([DENSE, row("folded", (0.98, 1.0, 1.01), sparsity=0.9, bound=7.25)], cores=2)
    assert said == (
        (
            "folded: no faster than dense beyond noise, 1.00 times (half of the rounds from "
            "0.98 to 1.01) as fast, at batch 1 with 1 thread."
        ),
        (
            "ONNX Runtime multiplies zeros like any other number: those of folded (90.0% of its "
            "weights) save no time here, only disk and download, where files are compressed."
        ),
        (
            "What helps is a runtime with kernels that skip zeros: they could make folded at most "
            "7.25 times as fast, if time went by multiplications."
        ),
    )


def test_kernels_that_skip_zeros() -> None:
    folded = row("folded", (0.99, 1.0, 1.01), sparsity=0.9, bound=8.0)
    sparse = row("sparse kernels", (2.7, 2.8, 2.9), sparsity=0.9, bound=8.0, skips_zeros=True)
    said = verdict([DENSE, folded, sparse], cores=2)
    assert said[0] == (
        "Fastest: sparse kernels, 2.80 times (half of the rounds from 2.70 to 2.90) as fast as "
        "dense, at batch 1 with 1 thread."
    )
    assert said[1].startswith("folded: no faster than dense")
    assert said[2].startswith(
        "ONNX Runtime multiplies zeros like any other number: those of folded"
    )
    assert said[3] == (
        "sparse kernels: 2.80 of the 8.00 times that the multiplications left allow, at batch 1 "
        "with 1 thread."
    )
    assert len(said) == 4


def _in_integers(batch: int, speed: float) -> list[BenchRow]:
    """Four rows; in integers dense is twice as fast as in fp32."""
    about: dict[str, Any] = {"batch": batch, "sparsity": 0.9, "bound": 8.0, "skips_zeros": True}
    int8 = Ratio(speed / 2, speed / 2 - 0.1, speed / 2 + 0.1)
    return [
        dataclasses.replace(DENSE, batch=batch),
        row("dense INT8", (1.95, 2.0, 2.05), batch=batch, sparsity=0.0, integers=True),
        row("sparse kernels", (2.7, 2.8, 2.9), **about),
        row("sparse INT8 kernels", (speed - 0.1, speed, speed + 0.1), **about, integers=True,
            int8_ratio=int8),
    ]  # fmt: skip


def test_the_fastest_is_named_once_with_its_instructions() -> None:
    said = verdict(_in_integers(1, 6.0), cores=2, isa="avx2")
    assert said == (
        (
            "Fastest: sparse INT8 kernels, by kernels for avx2, 6.00 times (half of the rounds "
            "from 5.90 to 6.10) as fast as dense and 3.00 times (half of the rounds from 2.90 to "
            "3.10) as fast as dense INT8, at batch 1 with 1 thread."
        ),
        (
            "dense INT8: faster than dense, 2.00 times (half of the rounds from 1.95 to 2.05) as "
            "fast, at batch 1 with 1 thread."
        ),
        (
            "sparse kernels: faster than dense, 2.80 times (half of the rounds from 2.70 to 2.90) "
            "as fast, at batch 1 with 1 thread."
        ),
        (
            "sparse kernels: 2.80 of the 8.00 times that the multiplications left allow, at batch "
            "1 with 1 thread."
        ),
        (
            "sparse INT8 kernels: 3.00 of the 8.00 times that the multiplications left allow, at "
            "batch 1 with 1 thread."
        ),
    )


def test_another_is_the_fastest_at_another_batch() -> None:
    said = verdict([*_in_integers(1, 6.0), *_in_integers(8, 1.5)], cores=2, isa="avx2")
    assert said[0].startswith("Fastest: sparse INT8 kernels, by kernels for avx2, 6.00 times")
    assert said[0].endswith("at batch 1 with 1 thread.")
    assert said[1].startswith("Fastest: sparse kernels, by kernels for avx2, 2.80 times")
    assert said[1].endswith("as fast as dense, at batch 8 with 1 thread.")
    both = verdict([*_in_integers(1, 6.0), *_in_integers(8, 4.0)], cores=2)
    assert both[0] == (
        "Fastest: sparse INT8 kernels, 4.00 to 6.00 times as fast as dense and 2.00 to 3.00 times "
        "as fast as dense INT8, at batch 1 and 8 with 1 thread."
    )
    slow = [DENSE, row("a", (0.98, 1.0, 1.01)), row("b", (0.5, 0.6, 0.7))]
    assert not any(sentence.startswith("Fastest") for sentence in verdict(slow, cores=2))


def test_zeros_that_do_pay_are_not_called_useless() -> None:
    said = verdict([DENSE, row("folded", (1.45, 1.5, 1.55), sparsity=0.9, bound=8.0)], cores=2)
    assert len(said) == 1
    assert said[0].startswith("folded: faster than dense, 1.50 times")


@pytest.mark.parametrize(
    ("base", "fields"),
    [
        (0.9, {"sparsity": 0.9}),  # the baseline has as many
        (None, {"sparsity": 0.9}),
        (0.0, {"sparsity": None}),
        (0.0, {"sparsity": 0.0}),
        (0.0, {"sparsity": 0.9, "runtime": "torch 2.15"}),  # another runtime differs anyway
    ],
)
def test_nothing_is_said_about_zeros_that_were_not_compared(
    base: float | None, fields: dict[str, object]
) -> None:
    said = verdict([row("dense", sparsity=base), row("b", (0.9, 1.0, 1.0), **fields)], cores=2)
    assert not any("zeros" in sentence for sentence in said)


def test_places_are_put_together() -> None:
    rows = [
        row(name, ratio, batch=batch, threads=threads)
        for batch in (1, 8)
        for threads in (1, 2)
        for name, ratio in (("a", None), ("b", (1.4 + batch / 10, 1.5 + batch / 10, 2.5)))
    ]
    assert verdict(rows, cores=2)[0] == (
        "b: faster than a, 1.60 to 2.30 times as fast, at batch 1 and 8 with 1 and 2 threads."
    )
    rows[3] = row("b", (0.5, 0.5, 0.5), batch=1, threads=2)
    said = verdict(rows, cores=2)
    assert said[0].endswith(
        "batch 1 with 1 thread, batch 8 with 1 thread and batch 8 with 2 threads."
    )
    assert said[1].startswith("b: slower than a, 0.50 times (half of the rounds from 0.50 to 0.50)")


def test_one_variant_stands_alone() -> None:
    said = verdict([row("dense", spread_ms=1.0, rounds=2)], cores=2)
    assert said == (
        "dense stands alone: there is nothing to compare it with.",
        (
            "The machine was not quiet: the middle half of the calls of dense spans 50% of their "
            "median. The times hold for this moment."
        ),
    )


def test_noise_and_too_few_rounds_and_threads_are_told() -> None:
    rows = [DENSE, row("b", (0.8, 1.0, 1.2), spread_ms=0.5, rounds=4, threads=3)]
    said = verdict(rows, cores=2)
    assert said[1] == (
        "The machine was not quiet: the middle half of the calls of b spans 25% of their median. "
        "The times hold for this moment, the ratios, taken round by round, beyond it."
    )
    assert said[2] == (
        "The rounds do not agree on b, by more than 10%: measure longer (-t), or on a quiet "
        "machine."
    )
    assert said[3] == "Quartiles of 4 rounds say little: measure longer, with at least 10."
    assert said[4].startswith("3 threads share 2 cores: they take turns")
