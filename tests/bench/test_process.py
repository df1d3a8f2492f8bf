"""Processes: answers, memory, failures, deaths."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from st3fx.bench.rounds import Process
from st3fx.bench.variant import Variant
from st3fx.errors import BenchError
from tests.bench.fakes import MEGABYTE, fake
from tests.killed import ends, family


def _process(variant: Variant, folder: Path) -> Process:
    path = folder / "inputs.npz"
    np.savez(path, *variant.inputs(2))
    return Process(variant, path, threads=1)


def test_calls_are_timed_and_prints_do_not_mix_with_answers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _process(fake("a", log=str(log)), tmp_path) as process:
        assert process.ready["runtime"] == "fake (2,) 1"
        assert len(process.warm(0.0)) == 1
        times = process.run(5)
        assert len(times) == 5
        assert min(times) > 0
    assert log.read_text() == "a" * (1 + 1 + 1 + 5)
    assert process._process.returncode == 0


@pytest.mark.slow
def test_memory_counts_from_the_mark(tmp_path: Path) -> None:
    """What was taken before is no part of it; what was held then, and is the model, is."""
    with _process(fake("a", before=200, megabytes=50), tmp_path) as process:
        peak = process.peak()
    assert peak is not None
    # The kernel counts pages in batches, so that some hundred kB may be missing.
    assert 49 * MEGABYTE < peak < 100 * MEGABYTE
    with _process(fake("a", held=10**9), tmp_path) as process:
        peak = process.peak()
    assert peak is not None
    assert 10**9 - MEGABYTE < peak < 10**9 + 50 * MEGABYTE


@pytest.mark.parametrize("at", [0, 3])
def test_a_failure_is_one_line(at: int, tmp_path: Path) -> None:
    for fails, message in {
        "raise": "PyTorch cannot run a: ValueError: no such thing",
        "refuse": "give it something else",
        "die": "the process that ran a was ended by SIGKILL, perhaps for want of memory: try a "
        "smaller batch, or other kernels",
    }.items():
        with (
            pytest.raises(BenchError) as caught,
            _process(fake("a", fails=fails, fails_at=at), tmp_path) as process,
        ):
            process.run(5)
        assert str(caught.value) == message


def test_an_end_without_a_reason_is_ours(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)the worker ended with 3:.*the last words"),
        _process(fake("a", fails="exit"), tmp_path),
    ):
        pass


def test_a_process_does_not_outlive_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _process(fake("a"), tmp_path) as process:
        raise KeyboardInterrupt
    assert process._process.returncode == -signal.SIGKILL  # at once, whatever it was doing


def test_a_process_for_onnx_loads_no_torch() -> None:
    """It would take seconds and hundreds of megabytes."""
    code = "import sys, st3fx.bench.worker, st3fx.bench.onnx_call; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


PARENT = """
import sys
from pathlib import Path
import numpy as np
from st3fx.bench.rounds import Process
from tests.bench.fakes import fake
variant, path = fake("a"), Path(sys.argv[1]) / "inputs.npz"
np.savez(path, *variant.inputs(2))
with Process(variant, path, threads=1) as process:
    print(process._process.pid, flush=True)
    process.warm(1e6)
"""


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """In the middle of its calls, which go on for days."""
    with family("-c", PARENT, str(tmp_path)) as (parent, worker):
        assert not ends(worker, seconds=0.5)
        parent.kill()
        assert ends(worker)
