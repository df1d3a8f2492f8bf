"""Has the table of probes, runs them in child processes, and puts their findings in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from st3fx.commands.progress import silent
from st3fx.doctor.probe import Diagnosis, Finding, Probe
from st3fx.processes import Child, ChildDiedError
from st3fx.version import VERSION

MACHINE, MAIN, FASTER, MORE = "machine", "main path", "faster", "more"

_INSTALL_AGAIN = "install st3fx again, into a fresh virtual environment"

PROBES: tuple[Probe, ...] = (
    Probe(MACHINE, "python", "st3fx.doctor.probes:python", "nothing works", _INSTALL_AGAIN),
    Probe(MACHINE, "processor", "st3fx.doctor.probes:processor", "nothing else is affected"),
    Probe(MACHINE, "threads", "st3fx.doctor.probes:threads", "training uses one core"),
    Probe(MACHINE, "memory", "st3fx.doctor.probes:memory", "large models may not fit"),
    Probe(MACHINE, "disk", "st3fx.doctor.probes:disk", "runs cannot be written here",
          "go to a folder that you may write to, or give --output-dir"),
    Probe(MACHINE, "accelerator", "st3fx.doctor.probes:accelerator",
          "training and tracing run on the CPU"),
    Probe(MACHINE, "bf16", "st3fx.doctor.probes:mixed_precision", "--amp does not work",
          "train with --precision no"),
    Probe(MAIN, "torch", "st3fx.doctor.main_path:torch_build", "nothing works", _INSTALL_AGAIN,
          required=True),
    Probe(MAIN, "packages", "st3fx.doctor.main_path:packages",
          "the versions of what st3fx needs are not known", "pip install -e ."),
    Probe(MAIN, "data", "st3fx.doctor.main_path:shipped_data",
          "st3fx demo and training without --data do not work", _INSTALL_AGAIN, required=True),
    Probe(MAIN, "convert and fold", "st3fx.doctor.main_path:convert_and_fold",
          "no command works", _INSTALL_AGAIN, required=True),
    Probe(MAIN, "train", "st3fx.doctor.main_path:train", "st3fx train does not work",
          "pip install --upgrade accelerate tensorboard matplotlib", required=True),
    Probe(MAIN, "export", "st3fx.doctor.main_path:export", "st3fx export does not work",
          "pip install --upgrade onnx onnxscript onnx-ir onnxruntime", required=True),
    Probe(MAIN, "analyze", "st3fx.doctor.main_path:count", "st3fx analyze does not work",
          _INSTALL_AGAIN, required=True),
    Probe(FASTER, "sparse kernels", "st3fx.doctor.probes:kernels",
          "sparse models run in ONNX Runtime as fast as dense ones", _INSTALL_AGAIN),
    Probe(FASTER, "torch.compile", "st3fx.doctor.probes:compiler",
          "st3fx train --torchcompile does not work",
          "leave --torchcompile out, or update torch and g++", limit=180.0),
    Probe(FASTER, "Triton kernels", "st3fx.doctor.probes:triton_kernels",
          "on a GPU thresholds are searched with PyTorch's own operators, which takes longer",
          "pip install --upgrade triton, in a version that fits torch"),
    Probe(MORE, "timm", "st3fx.doctor.probes:timm", "timm:NAME is no SPEC here",
          "pip install --upgrade timm"),
    Probe(MORE, "transformers", "st3fx.doctor.probes:transformers",
          "models of yours that import it do not load", "pip install --upgrade transformers"),
    Probe(MORE, "fashion-mnist", "st3fx.doctor.probes:fashion_mnist",
          "--data fashion-mnist needs --data-path", "apt install dataset-fashion-mnist"),
)  # fmt: skip


SLOW = 100.0
"""Probes with a limit above this run beside the others."""


def diagnose(
    probes: Sequence[Probe] = PROBES, progress: Callable[[str], None] | None = None
) -> Diagnosis:
    """Try every part of st3fx on this machine.

    Args:
        probes: What to try.
        progress: Called with the name of each probe as it begins.

    Returns:
        One finding for each probe; no probe raises.
    """
    began = time.perf_counter()
    report = progress or silent
    lanes = [[p for p in probes if p.limit <= SLOW], [p for p in probes if p.limit > SLOW]]
    with ThreadPoolExecutor(len(lanes)) as pool:
        found = list(pool.map(lambda lane: dict(_lane(lane, report)), lanes))
    by_target = found[0] | found[1]
    findings = tuple(by_target[probe.target] for probe in probes)
    return Diagnosis(VERSION, findings, time.perf_counter() - began)


def _lane(
    probes: Sequence[Probe], progress: Callable[[str], None]
) -> Iterator[tuple[str, Finding]]:
    """Findings by target; after a process that died, another one goes on with the next probe."""
    left = list(probes)
    while left:
        done = 0
        for finding in _one_process(left, progress):
            yield left[done].target, finding
            done += 1
        left = left[done:]


def _one_process(probes: Sequence[Probe], progress: Callable[[str], None]) -> Iterator[Finding]:
    """Findings of one child process, in order; the last one may be of its death."""
    with Child("st3fx.doctor.worker") as child:
        for probe in probes:
            progress(probe.name)
            began = time.perf_counter()
            try:
                yield _finding(probe, child.ask(probe.target, probe.limit))
            except ChildDiedError as death:
                seconds = round(time.perf_counter() - began, 3)
                said = {"status": "failed", "detail": str(death), "seconds": seconds}
                yield _finding(probe, said)
                return
        child.kill()  # what a probe left running is nobody's business


def _finding(probe: Probe, said: dict[str, Any]) -> Finding:
    ok = said["status"] == "ok"
    # What is absent comes with advice of its own, or there is nothing to do about it.
    advice = said["advice"] if said["status"] == "absent" else probe.advice
    return Finding(
        section=probe.section,
        name=probe.name,
        status=said["status"],
        required=probe.required,
        detail=said["detail"],
        consequence="" if ok else probe.consequence,
        advice="" if ok else advice,
        seconds=said["seconds"],
    )
