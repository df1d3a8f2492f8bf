from __future__ import annotations

import io
import time

import torch
from rich.console import Console
from torch import nn

import st3fx
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


def test_every_stage_has_words() -> None:
    stages: list[str] = []
    st3fx.convert(nn.Linear(4, 3), torch.randn(2, 4), progress=stages.append)
    assert {*stages, "load", "write"} <= set(STAGES)
    assert all(STAGES.values())
