"""The constants of the cost model for this machine: a file that ``st3fx bench --calibrate`` writes.

It lies in the user's cache folder, or where ``ST3FX_COSTS`` says, and holds for the CPU and the
instruction set that it names; on another machine the defaults count.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx import native
from st3fx.bench.machine import environment
from st3fx.errors import BenchError
from st3fx.files.atomic import replace_file
from st3fx.runtime.costs import Costs

DEFAULTS = "defaults"


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Calibration(Costs())
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from error
    try:
        content = json.loads(text)
        costs = Costs(**content["costs"])
        values = dataclasses.astuple(costs)
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    if not all(isinstance(v, float | int) and 0 <= v < math.inf for v in values):
        raise _broken(path, "a constant is no time in seconds")
    here = content.get("machine") == machine()
    return Calibration(costs, str(path)) if here else Calibration(Costs())


def save_calibration(costs: Costs) -> Path:
    """Write the constants of this machine.

    Raises:
        BenchError: When the file cannot be written.
    """
    path = calibration_path()
    content: dict[str, Any] = {"machine": machine(), "costs": dataclasses.asdict(costs)}
    text = json.dumps(content, indent=1) + "\n"
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


def _broken(path: Path, reason: str) -> BenchError:
    return BenchError(
        f"{path}, the constants of the cost model, cannot be read ({reason}): write it anew by "
        "st3fx bench --calibrate, or delete it"
    )
