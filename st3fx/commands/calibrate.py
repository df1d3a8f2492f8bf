"""What this machine's kernels cost: the facade's verb that measures the cost model's constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.commands.progress import silent
from st3fx.runtime.calibrate import calibrate as measure
from st3fx.runtime.calibration import machine, save_calibration
from st3fx.runtime.costs import Costs


@dataclass(frozen=True)
class CalibrationResult:
    """Measured constants.

    Attributes:
        path: The file that holds them.
        machine: For which CPU and instruction set they are.
        costs: The constants, in seconds.
        defaults: Those that count without them.
        error: Half of the layers took a time within this share of what the model says.
        layers: How many were measured.
    """

    path: Path
    machine: dict[str, str]
    costs: Costs
    defaults: Costs
    error: float
    layers: int

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def calibrate(*, progress: Callable[[str], None] | None = None) -> CalibrationResult:
    """Measure the constants of the sparse kernels' cost model, and keep them for this machine.

    ``st3fx.export_onnx(..., sparse_kernels=True)`` chooses by them from then on.

    Args:
        progress: Called with what is under way.

    Raises:
        NativeError: The kernel library is missing.
        BenchError: When the file cannot be written.
    """
    fit = measure(progress or silent)
    path = save_calibration(fit.costs)
    return CalibrationResult(path, machine(), fit.costs, Costs(), fit.error, fit.layers)
