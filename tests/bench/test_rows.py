"""From seconds to rows: numbers that can be checked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from st3fx.bench.bench_result import make_rows, ratio
from st3fx.bench.rounds import Timing
from tests.bench.fakes import fake


def _timing(*turns: tuple[float, ...]) -> Timing:
    return Timing(turns, 1000, "onnxruntime 1.0", "CPUExecutionProvider", 0.5)


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine slows down tenfold after two rounds: the ratio stays what it is."""
    base = _timing((2.0, 2.0, 9.0), (2.0,), (20.0,), (30.0,), (40.0,))
    other = _timing((1.0, 1.0, 7.0), (1.0,), (10.0,), (15.0,), (20.0,))
    found = ratio(base, other)
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    mixed = ratio(base, _timing((1.0,), (2.0,), (40.0,), (10.0,), (10.0,)))
    assert (mixed.low, mixed.median, mixed.high) == (1.0, 2.0, 3.0)


def test_a_row_is_over_all_calls() -> None:
    seconds = [index / 1000 for index in range(1, 102)]
    base = _timing(tuple(seconds[:50]), tuple(seconds[50:]))
    dense, _ = make_rows([fake("dense"), fake("other")], [base, base], batch=4, threads=2)
    assert (dense.median_ms, dense.p95_ms, dense.spread_ms) == pytest.approx((51.0, 96.0, 50.0))
    assert dense.items_per_second == pytest.approx(4 * 101 / sum(seconds))
    assert (dense.iterations, dense.rounds, dense.batch, dense.threads) == (101, 2, 4, 2)
    assert (dense.peak_memory, dense.load_seconds) == (1000, 0.5)


def test_rows_are_compared_with_dense_integers_too() -> None:
    variants = [
        fake("dense"),
        dataclasses.replace(fake("dense INT8"), integers=True, sparsity=0.0),
        dataclasses.replace(fake("sparse INT8 kernels"), integers=True, sparsity=0.9),
    ]
    timings = [_timing((6.0,), (12.0,)), _timing((3.0,), (6.0,)), _timing((1.0,), (2.0,))]
    dense, int8, sparse = make_rows(variants, timings, batch=1, threads=1)
    assert dense.int8_ratio is not None
    assert dense.int8_ratio.median == 0.5
    assert int8.int8_ratio is None
    assert int8.ratio is not None
    assert (int8.ratio.median, int8.integers, dense.integers) == (2.0, True, False)
    assert sparse.ratio is not None
    assert sparse.int8_ratio is not None
    assert (sparse.ratio.median, sparse.int8_ratio.median) == (6.0, 3.0)
    # Where it is the baseline itself one ratio says all.
    first, second = make_rows(variants[1:], timings[1:], batch=1, threads=1)
    assert (first.int8_ratio, second.int8_ratio) == (None, None)


def test_the_baseline_alone_has_no_ratio() -> None:
    base, other = _timing((1.0,), (1.0,)), _timing((2.0,), (4.0,))
    dense, slow = make_rows([fake("dense"), fake("slow")], [base, other], batch=1, threads=1)
    assert dense.ratio is None
    assert slow.ratio is not None
    assert slow.ratio.median == 0.375
