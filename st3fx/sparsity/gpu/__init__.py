"""Triton kernels: what a GPU does in few launches, without waiting for it.

The submodules import Triton, which is not everywhere: import them after :func:`available`.
"""

from __future__ import annotations

import functools
import importlib.util

import torch


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device."""
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
