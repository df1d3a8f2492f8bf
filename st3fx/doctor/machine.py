"""Probes of the machine: what it has, and which of it torch uses."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path

import torch

from st3fx.doctor.probe import AbsentError

GIGABYTE = 10**9
LITTLE_DISK = 2 * GIGABYTE
"""A run with its checkpoints needs about ten times the weights: this is one of 50 M parameters."""


def python() -> str:
    """Version and system."""
    return f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"


def processor() -> str:
    """Name, cores, and the vector instructions that torch uses."""
    features = _features()
    name = features.get("cpu_name") or platform.processor() or platform.machine()
    words = [torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")]
    words += [word for key, word in _WORDS.items() if features.get(key)]
    return f"{name}, {os.cpu_count()} cores; {', '.join(words)}"


_WORDS = {
    "avx512_bf16": "bf16 in AVX-512",
    "avx512_vnni": "VNNI",
    "amx_tile": "AMX",
    "amx_bf16": "bf16 in AMX",
    "bf16": "bf16",
    "sve": "SVE",
}


def _features() -> dict[str, object]:
    return dict(torch.cpu.get_capabilities())


def threads() -> str:
    """How many torch uses, of how many this process may."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    used, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    why = f"; OMP_NUM_THREADS is {asked}" if asked else ""
    return f"{used} of {usable} cores{why}"


def memory() -> str:
    """Of the machine."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError) as error:
        raise AbsentError("this system does not tell") from error
    return f"{total / GIGABYTE:.0f} GB"


def disk() -> str:
    """Free space, and whether a file can be written, in the working directory."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    with tempfile.NamedTemporaryFile(dir=here, prefix=".st3fx-"):
        pass
    if free < LITTLE_DISK:
        raise AbsentError(
            f"only {free / GIGABYTE:.1f} GB are free in {here}", "free some, or give --output-dir"
        )
    return f"{free / GIGABYTE:,.0f} GB free in {here}"


def accelerator() -> str:
    """GPUs and the like that torch sees."""
    if not torch.accelerator.is_available():
        advice = ""
        if shutil.which("nvidia-smi"):
            advice = "install a build of PyTorch for CUDA: this machine seems to have an NVIDIA GPU"
        raise AbsentError("none", advice)
    kind = accelerator_device().type
    count = torch.accelerator.device_count()
    if kind != "cuda":
        return f"{count} × {kind}"
    names = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} with {properties.total_memory / GIGABYTE:.0f} GB")
    return f"{count} × {kind}: {', '.join(dict.fromkeys(names))}"


def accelerator_device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    # A build for CUDA names it as its accelerator on machines without one too.
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def mixed_precision() -> str:
    """A product in bf16 on every kind of device, compared with float64."""
    kinds = dict.fromkeys((torch.device("cpu"), accelerator_device()))
    return ", ".join(_bf16(device) for device in kinds)


def _bf16(device: torch.device) -> str:
    left, right = (torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    with torch.autocast(device.type, torch.bfloat16):
        product = left.to(device) @ right.to(device)
    if product.dtype != torch.bfloat16:
        raise RuntimeError(f"autocast on {device} computes in {product.dtype}")
    exact = left.double() @ right.double()
    error = float((product.cpu().double() - exact).abs().max() / exact.abs().max())
    if not error < 2e-2:  # 8 bits of mantissa: 4e-3 for each factor
        raise RuntimeError(f"a product in bf16 on {device} is {error:.2g} off")
    features = _features()
    slow = device.type == "cpu" and not (
        features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16")
    )
    return f"{device.type}{' (in software: slower than float32)' if slow else ''}"
