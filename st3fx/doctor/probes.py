"""Probes of the machine, of what some options need, and of what makes things faster."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
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
    """How many cores torch uses, of those that this process may."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    used, asked = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    why = f"; OMP_NUM_THREADS is {asked}" if asked else ""
    return f"{used} of {usable} cores{why}"


def memory() -> str:
    """How much the machine has."""
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


def timm() -> str:
    """Models of ``timm:NAME``."""
    return _package("timm")


def transformers() -> str:
    """Models of users who import it."""
    return _package("transformers")


def fashion_mnist() -> str:
    """The full set, where Debian and Ubuntu put it."""
    from st3fx.data.base import DataSettings
    from st3fx.data.fashion_mnist import DEBIAN, fashion_mnist

    if not DEBIAN.exists():
        raise AbsentError(f"not in {DEBIAN}", "apt install dataset-fashion-mnist")
    data = fashion_mnist(DataSettings(name="fashion-mnist"))
    return f"{len(data.train.dataset):,} training images in {DEBIAN}"  # type: ignore[arg-type]


def _package(name: str) -> str:
    if importlib.util.find_spec(name) is None:
        raise AbsentError("not installed", f"pip install {name}")
    importlib.import_module(name)
    return importlib.metadata.version(name)


def kernels() -> str:
    """The library of compiled CPU kernels is there and fits this processor."""
    from st3fx import native

    if not native.library_path().exists():
        raise AbsentError(
            "st3fx was installed without them: there was no C++ compiler",
            "install g++ or clang++, then st3fx again",
        )
    chosen = native.isa()
    return f"use {chosen}, of {', '.join(native.available_isas())}"


def compiler() -> str:
    """``torch.compile`` compiles a function, and it computes the same."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    device = accelerator_device()
    try:
        name = get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise AbsentError("there is no C++ compiler", "install g++ or clang++") from error
    x = torch.linspace(0, 1, 64, device=device)
    compiled = torch.compile(lambda x: torch.where(x > 0.5, x - 0.5, 0.0) * 2)
    if not torch.equal(compiled(x), torch.where(x > 0.5, x - 0.5, 0.0) * 2):
        raise RuntimeError(f"a compiled function computes something else on {device}")
    return f"{name}; compiled a small function for {device.type}"


def triton_kernels() -> str:
    """The Triton kernels give what the CPU gives."""
    from st3fx.sparsity import gpu

    device = accelerator_device()
    if device.type == "cpu":
        return "not needed without a GPU"
    if not gpu.available(device):
        raise AbsentError(f"Triton is not there for {device.type}")
    return compare_kernels(device)


def compare_kernels(device: torch.device) -> str:
    """Threshold and effective weights on ``device``, against those on the CPU.

    Raises:
        RuntimeError: Where they differ.
    """
    from st3fx.methods.st3 import effective_weight
    from st3fx.plan.sites import Layout
    from st3fx.sparsity.formula import smallest_threshold
    from st3fx.sparsity.gpu.soft import Channels, soft_threshold
    from st3fx.sparsity.threshold.radix import Group, chunk_table, quantile
    from st3fx.sparsity.threshold.search import global_threshold

    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    there = weight.to(device)
    table = chunk_table([there], [1.0], [1])
    threshold = quantile([Group(table, lambda counts, how: None)], weight.numel(), 0.9)
    expected = global_threshold([weight], [1.0], 0.9)
    if not torch.equal(threshold.cpu(), expected):
        raise RuntimeError(f"the threshold is {float(threshold)} and not {float(expected)}")
    out = torch.empty_like(there)
    soft_threshold([Channels(there, threshold, out, True)], smallest_threshold(torch.float32))
    wanted = effective_weight(weight, expected, Layout((0,)), rescale=True)
    if not torch.allclose(out.cpu(), wanted, rtol=1e-5, atol=1e-7):
        raise RuntimeError("effective weights differ from those of the CPU")
    return f"threshold and effective weights on {device.type} as on the CPU"
