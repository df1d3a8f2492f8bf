"""Rounds: how many calls, in which order, and what is timed."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from st3fx.bench.rounds import _by_count, _by_time, _share, measure
from st3fx.bench.variant import BenchSettings
from tests.bench.fakes import fake


@pytest.mark.parametrize("latency", [1e-6, 0.01, 5.0])
@pytest.mark.parametrize("iterations", [1, 7, 100, 12_345])
def test_as_many_calls_as_asked_for(iterations: int, latency: float) -> None:
    rounds = list(_by_count(latency, BenchSettings(iterations=iterations), []))
    assert sum(rounds) == iterations
    assert len(rounds) >= min(10, iterations)
    assert min(rounds) >= 1
    assert max(rounds) <= 1000
    assert max(rounds) - min(rounds) <= 1


def test_rounds_go_on_until_the_calls_took_the_time() -> None:
    spent = [0.0, 0.0]
    rounds = []
    for calls in _by_time(0.02, BenchSettings(seconds=3.0), spent):
        rounds.append(calls)
        spent[0] += calls * 0.02
        spent[1] += calls * 0.01
    assert set(rounds) == {5}  # a tenth of a second for the slower one
    assert spent[0] + spent[1] == pytest.approx(6.0, abs=0.15)


def test_there_are_ten_rounds_in_however_little_time() -> None:
    spent = [0.0]
    counts = []
    for calls in _by_time(0.5, BenchSettings(seconds=0.1), spent):
        counts.append(calls)
        spent[0] += calls * 0.5
    assert counts == [1] * 10


def test_every_round_has_every_variant_in_an_order_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said: list[str] = []
    settings = BenchSettings(iterations=36, warmup=0.0)
    made = [fake(name, log=str(log)) for name in "abc"]
    timings = measure(made, 5, 3, settings, tmp_path, said.append)
    text = log.read_text()
    # Each is called once when it is loaded, once to warm up, and once before each turn.
    head, body = text[:6], text[6:]
    assert sorted(head) == sorted("aabbcc")
    rounds = [len(turn) for turn in timings[0].turns]
    assert (sum(rounds), len(rounds)) == (36, 10)
    orders = set()
    for calls in rounds:
        turns, body = body[: 3 * (calls + 1)], body[3 * (calls + 1) :]
        order = [(name, len(list(group))) for name, group in itertools.groupby(turns)]
        assert sorted(order) == [(name, calls + 1) for name in "abc"]
        orders.add(tuple(name for name, _ in order))
    assert body == ""
    assert len(orders) > 1
    assert all([len(turn) for turn in timing.turns] == rounds for timing in timings)
    assert (timings[0].runtime, timings[0].provider) == ("fake (5,) 3", "FakeProvider")
    assert said[0] == "loading a (batch 5, threads 3)"
    assert re.fullmatch(r"round 10, 100%: a .* ms, b .* ms, c .* ms .batch 5, threads 3.", said[-1])


@pytest.mark.slow
def test_the_order_follows_the_seed(tmp_path: Path) -> None:
    texts: list[str] = []
    said: list[str] = []
    for seed in (0, 0, 1):
        log = tmp_path / f"log{len(texts)}"
        made = [fake(name, log=str(log)) for name in "abc"]
        measure(
            made, 1, 1, BenchSettings(iterations=10, warmup=0, seed=seed), tmp_path, said.append
        )
        texts.append(log.read_text())
    assert texts[0] == texts[1] != texts[2]


def test_how_much_is_done() -> None:
    by_count, by_time = BenchSettings(iterations=40), BenchSettings(seconds=10.0)
    assert _share(by_count, 3, 10, [99.0]) == 0.25
    assert _share(by_time, 20, 5, [4.0, 6.0]) == 0.5
    assert _share(by_time, 2, 5, [40.0, 60.0]) == 0.2  # there are ten rounds at least
    assert _share(by_time, 20, 5, [40.0, 60.0]) == 1.0
