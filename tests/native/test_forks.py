"""Processes that are forked while threads run operators."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from st3fx import native

FORKS = 100


@pytest.mark.slow
def test_a_child_of_a_busy_process_runs_operators(tmp_path: Path) -> None:
    """What a thread held that the child does not have, the child does not wait for."""
    program = tmp_path / "operators"
    source = Path(__file__).parent / "operators.cpp"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    subprocess.run(
        [*compiler, "-std=c++17", "-O1", "-pthread", str(source), "-o", str(program), "-ldl"],
        check=True,
    )
    done = subprocess.run(
        [str(program), str(native.library_path()), "12", str(FORKS)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert f"{FORKS} forks, 0 children failed" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
