"""What benchmarks share: the machine that they run on, and the file that their figures go into."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from st3fx import native

RESULTS = Path(__file__).parent / "results"


def environment(device: str = "cpu", **more: Any) -> dict[str, Any]:
    """Versions, threads and the processor, and whatever else the figures depend on."""
    named = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": cpu(),
    }
    if device == "cuda":
        named["gpu"] = torch.cuda.get_device_name()
    return {**named, **more}


def cpu() -> str:
    """The processor's name, as far as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def of_this_core(name: str, *more: object) -> Path:
    """The results file of a benchmark for this kind of core: its maker and instruction set."""
    maker = next((each for each in ("amd", "intel") if each in cpu().lower()), platform.machine())
    parts = (name, maker, native.isa(), *more)
    return RESULTS / f"{'_'.join(map(str, parts))}.json"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write figures as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the quartiles, rounded to five digits."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return {"median": _short(middle), "q1": _short(low), "q3": _short(high)}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
