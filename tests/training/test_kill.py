"""``kill -9`` of a real process, at random moments, again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from st3fx.commands.train import train_spec
from tests.training.runs import folder_of, require_same_run, settings

ROOT = Path(__file__).parent.parent.parent

# Imports torch once; each run is a fork of it, as importing takes longer than the runs here.
SERVER = """
import json, os, sys
from st3fx.cli import main
import st3fx.commands.train
import matplotlib.figure, tensorboard.summary, torch.utils.tensorboard, torch._dynamo
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        main(json.loads(line))
        os._exit(1)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts runs, one after another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        assert self._read() == "ready"

    def _read(self) -> str:
        return self._out.readline().strip()

    def run(self, *args: str, during: Callable[[int], None] = lambda pid: None) -> int:
        """Exit code, negative for a signal; ``during`` is given the process id."""
        self._in.write(json.dumps(args) + "\n")
        self._in.flush()
        during(int(self._read()))
        return int(self._read())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def arguments(folder: Path, output: str) -> list[str]:
    return [
        "train", str(folder / "net.py"), "--epochs", "5", "--batch-size", "400", "-o", output,
        "--log-interval", "2", "--bn-recalibrate", "2", "--checkpoint-every", "1",
    ]  # fmt: skip


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, server: Server) -> None:
    values = {"epochs": 5, "batch_size": 400, "checkpoint_every": 1}
    whole = settings(tmp_path, output_dir=str(tmp_path / "whole"), **values)
    train_spec(whole)
    parts = settings(tmp_path, output_dir=str(tmp_path / "parts"), **values)
    chance, steps = random.Random(0), []

    def kill(pid: int) -> None:
        """A moment after the run has got further, or before it has begun."""
        before = written()
        while alive(pid) and written() == before and chance.random() > 0.0005:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        if alive(pid):
            os.kill(pid, signal.SIGKILL)

    def written() -> float:
        return checkpoint.stat().st_mtime if checkpoint.exists() else 0.0

    command = arguments(tmp_path, str(parts.output_dir))
    checkpoint = folder_of(parts).last
    for _ in range(8):
        again = ["--resume"] if checkpoint.exists() else ["--force"]
        code = server.run(*command, *again, during=kill)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        steps.append(written())
    assert len(set(steps)) > 2  # it was killed in different places, and had got further in between
    assert server.run(*command, "--resume") == 0
    require_same_run(whole, parts)
    left = [p.name for p in folder_of(parts).path.rglob(".*")]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves(tmp_path: Path, server: Server, number: int) -> None:
    values = {"epochs": 5, "batch_size": 400}
    whole = settings(tmp_path, output_dir=str(tmp_path / "whole"), **values)
    parts = settings(tmp_path, output_dir=str(tmp_path / "parts"), **values)
    train_spec(whole)

    def stop(pid: int) -> None:
        log = folder_of(parts).log
        while not log.exists():
            time.sleep(0.005)
        os.kill(pid, number)

    command = [a for a in arguments(tmp_path, str(parts.output_dir)) if a != "--checkpoint-every"]
    command.remove("1")
    assert server.run(*command, during=stop) == 130
    assert server.run("train", "--resume", str(parts.output_dir)) == 0
    require_same_run(whole, parts)
