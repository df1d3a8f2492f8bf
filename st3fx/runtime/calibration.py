"""The constants of the cost model for this machine: a file that ``st3fx bench --calibrate`` writes.

It lies in the user's cache folder, or where ``ST3FX_COSTS`` says, and holds for the CPU and the
instruction set that it names; on another machine the defaults count.

What times depend on beside the model: versions, processor, cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from st3fx import native
from st3fx.errors import BenchError
from st3fx.files.atomic import replace_file
from st3fx.files.reading import Format, sealed
from st3fx.runtime.costs import Costs
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


DEFAULTS = "defaults"

FILE = Format(
    BenchError,
    "it has the cost model's constants: write it anew by st3fx bench --calibrate, or delete it",
    limit=1 << 20,
)


@dataclass(frozen=True)
class Calibration:
    """Constants, and where they come from.

    Attributes:
        costs: The constants.
        source: ``defaults``, or the file.
    """

    costs: Costs
    source: str = DEFAULTS


def calibration_path() -> Path:
    """Where the constants of this machine are kept."""
    if given := os.environ.get("ST3FX_COSTS"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "st3fx" / "costs.json"


def load_calibration() -> Calibration:
    """The constants of this machine, else the defaults.

    Raises:
        BenchError: When the file is there and cannot be understood.
    """
    path = calibration_path()
    if not path.exists():
        return Calibration(Costs())
    body = FILE.json(FILE.content(path), path)
    written = FILE.build(FILE.unsealed(body, path), _Written, path)
    here = written.machine == machine()
    return Calibration(written.costs, str(path)) if here else Calibration(Costs())


@dataclass(frozen=True)
class _Written:
    """The file of a machine's constants."""

    machine: dict[str, str]
    costs: Costs


def save_calibration(costs: Costs) -> Path:
    """Write the constants of this machine.

    Raises:
        BenchError: When the file cannot be written.
    """
    path = calibration_path()
    content: dict[str, Any] = {"machine": machine(), "costs": dataclasses.asdict(costs)}
    text = json.dumps(sealed(content), indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def machine() -> dict[str, str]:
    """What the constants depend on: the CPU and the instruction set of the kernels.

    Raises:
        NativeError: ``ST3FX_ISA`` names what this CPU cannot run.
    """
    return {"cpu": str(environment()["cpu"]), "isa": _isa()}


def _isa() -> str:
    return native.isa() if native.library_path().exists() else "none"
