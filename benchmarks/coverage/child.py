"""One stage of one model in a process of its own, with a limit on time and memory.

Children are forked from a server that has imported torch and the model's library once.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.coverage import libraries

STAGES = {
    "convert": "benchmarks.coverage.convert_stage:run",
    "export": "benchmarks.coverage.export_stage:run",
    "nncf": "benchmarks.coverage.peers:nncf",
    "torch-pruning": "benchmarks.coverage.peers:torch_pruning",
}
"""What is asked of a model -> the function that answers."""

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "YOLO_VERBOSE": "False",
}
_PRELOADED = [
    "benchmarks.coverage.convert_stage",
    "benchmarks.coverage.export_stage",
    # What is imported at its first use, and takes a second in each child.
    "st3fx.public",
    "st3fx.commands.export",
    "st3fx.export.engine",
    "torch._dynamo",
    "torch.onnx._internal.exporter._torchlib.ops",
    "onnx.reference",
]


def prepare(names: list[str]) -> None:
    """Have the server import what the models of some libraries need."""
    os.environ.update(_ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED + [libraries.module_name(name) for name in names])


def run(library: str, name: str, stage: str, timeout: float, memory_gb: float) -> dict[str, Any]:
    """The row of one stage; ``error`` in it says what ended the child without one."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(there, library, name, stage, memory_gb))
    child.start()
    there.close()
    try:
        if not here.poll(timeout):
            return {"ok": False, "error": f"took more than {timeout:.0f} s"}
        row: dict[str, Any] = here.recv()
        return row
    except EOFError:
        child.join()
        return {"ok": False, "error": f"ended with exit code {child.exitcode}"}
    finally:
        child.kill()
        child.join()


def _answer(to: Connection, library: str, name: str, stage: str, memory_gb: float) -> None:
    """Run in the child: send a row, whatever happens."""
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr  # libraries print
    try:
        row = _measure(library, name, stage)
    except Exception as error:  # noqa: BLE001 - whatever a model raises is its row
        lines = str(error).strip().splitlines() or [""]
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {lines[0]} ({where.name}:{where.lineno})"
        row = {"ok": False, "error": text[:300]}
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    to.send(row)


def _measure(library: str, name: str, stage: str) -> dict[str, Any]:
    case = libraries.case(library, name)
    if case.one_thread:
        import torch  # noqa: PLC0415 - in the child alone

        torch.set_num_threads(1)
    module, _, function = STAGES[stage].partition(":")
    answer: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
    return answer(case)
