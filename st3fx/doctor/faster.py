"""Probes of what makes things faster, where it is there."""

from __future__ import annotations

import torch

from st3fx.doctor.machine import accelerator_device
from st3fx.doctor.probe import AbsentError


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
    from st3fx import gpu

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
    from st3fx.core.functional import smallest_threshold
    from st3fx.core.sites import Layout
    from st3fx.core.threshold import global_threshold
    from st3fx.gpu.chunks import chunk_table
    from st3fx.gpu.radix import Group, quantile
    from st3fx.gpu.soft import Channels, soft_threshold
    from st3fx.methods.st3 import effective_weight

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
