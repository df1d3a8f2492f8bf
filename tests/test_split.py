"""Weights that are split while they compute, checkpoints for other counts, and pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import split_processes
from tests.processes import require_success


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_in_processes(tmp_path: Path, count: int) -> None:
    """All scenarios at once: the processes are started only once."""
    names = [name for name, _ in split_processes.scenarios(count)]
    require_success("tests.split_processes", tmp_path, count, names)
