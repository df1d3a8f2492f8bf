"""What times depend on beside the model: versions, processor, cores."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from st3fx.version import VERSION

_VECTORS = ("amx_tile", "avx512f", "avx2", "avx", "asimd")
"""Flags of the vector units that decide how fast products are, the strongest first."""


def environment() -> dict[str, Any]:
    """Versions, the processor, its cores and how busy they are, as JSON values."""
    info = _cpuinfo()
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {
        "st3fx": VERSION,
        **{name: metadata.version(name) for name in ("onnxruntime", "torch", "numpy")},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "vectors": [name for name in _VECTORS if name in flags],
        "cores": cores(),
        "cpus": cpus(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cores() -> int:
    """Physical cores that this process may use; CPUs where the system does not tell."""
    siblings = {_siblings(cpu) for cpu in _available()}
    return len(siblings)


def cpus() -> int:
    """Threads that this process can run at once."""
    return len(_available())


def _available() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """The CPUs of the same core, as text; a CPU of its own where that is not known."""
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
