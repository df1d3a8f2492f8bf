from __future__ import annotations

import io
import time

import torch
from rich.console import Console
from torch import nn

import st3fx
from st3fx import under_way
from st3fx.cli.views.progress import STAGES, Progress


def _run(*, terminal: bool, delay: float, work: float) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with Progress(console, delay) as report:
        report("trace")
        time.sleep(work)
    return file.getvalue()


def test_shown_on_a_terminal_when_it_takes_long() -> None:
    assert STAGES["trace"] in _run(terminal=True, delay=0.01, work=0.3)


def test_quick_work_leaves_the_terminal_alone() -> None:
    assert "capturing" not in _run(terminal=True, delay=30, work=0)


def test_never_into_a_file() -> None:
    assert _run(terminal=False, delay=0.01, work=0.1) == ""


def test_the_share_of_a_stage_is_shown_and_never_falls() -> None:
    shares: dict[str, list[float]] = {}
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    names: list[str] = []
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Progress(console, delay=60) as report:

        def begin(stage: str) -> None:
            names.append(stage)
            report(stage)

        def hear(share: float) -> None:
            shares.setdefault(names[-1], []).append(share)
            report._told(share)
            assert str(report._spinner.text) == f"{STAGES[names[-1]]}  {share:4.0%}"

        with under_way.listening(hear):
            st3fx.convert(net, torch.randn(2, 3, 8, 8), progress=begin)
    assert shares.keys() == {"observe", "trace", "verify"}
    for told in shares.values():
        assert told == sorted(told)
        assert told[0] == 0.0
    assert shares["observe"] == [0.0, 0.5, 1.0]
    assert len(shares["verify"]) == 13
    assert shares["verify"][-1] == 1.0


def test_nobody_is_told_without_a_listener() -> None:
    under_way.begin(3)
    under_way.advance()
    heard: list[float] = []
    with under_way.listening(heard.append):
        under_way.begin(2)
        for _ in range(3):
            under_way.advance()
    under_way.advance()
    assert heard == [0.0, 0.5, 1.0, 1.0]


def test_quiet_shows_nothing() -> None:
    file = io.StringIO()
    with Progress(Console(file=file, force_terminal=True), 0.01, quiet=True) as report:
        report("trace")
        time.sleep(0.1)
    assert file.getvalue() == ""


def test_every_stage_has_words() -> None:
    stages: list[str] = []
    st3fx.convert(nn.Linear(4, 3), torch.randn(2, 4), progress=stages.append)
    assert {*stages, "load", "write"} <= set(STAGES)
    assert all(STAGES.values())
