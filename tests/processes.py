"""Scenarios that run in several processes at once: starting them, and what each process does."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent


def require_success(module: str, folder: Path, count: int, names: list[str]) -> None:
    """Run a module of scenarios in some processes, once for all of them; fail for what they say.

    Args:
        module: Ends by :func:`run_as_process`.
        folder: For what the processes share and write.
        count: How many processes.
        names: Of the scenarios that must have run.
    """
    command = [sys.executable, "-m", module, str(folder)]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(count)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=180)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    files = [folder / f"{rank}.json" for rank in range(count)]
    assert all(file.exists() for file in files), "\n".join(errors)
    outcomes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert [list(outcome) for outcome in outcomes] == [names] * count
    failures = [
        f"{name}, process {rank}: {error}"
        for rank, outcome in enumerate(outcomes)
        for name, error in outcome.items()
        if error
    ]
    assert not failures, "\n".join(failures)


def run_as_process(scenarios: Mapping[str, Callable[[], None]]) -> None:
    """Run all scenarios as one of several processes, by the arguments FOLDER RANK COUNT."""
    folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=count, timeout=dt.timedelta(seconds=20)
    )
    wanted = os.environ.get("SCENARIO", "")
    results = {name: _outcome(s) for name, s in scenarios.items() if wanted in name}
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()
    time.sleep(0.1)  # as `leave_group` of the driver


def _outcome(scenario: Callable[[], None]) -> str:
    try:
        scenario()
    except Exception:  # noqa: BLE001 - all of them are reported
        return traceback.format_exc()
    return ""


def everywhere(value: Any) -> list[Any]:
    """The values of all processes."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
