"""What an export with sparse kernels did: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.export.result import Parity
from st3fx.onnx_passes.sparse_kernels.report import KernelReport


@dataclass(frozen=True)
class SparseFile:
    """A written ONNX file with sparse operators.

    Attributes:
        path: The file.
        kernels: What was chosen for each layer.
        open_inputs: Inputs whose height and width are free, tried with a size that the export had
            not seen.
        parity: One for each call that was compared with PyTorch; empty where that was left out.
        tolerance: Largest relative difference that passes: 1e-5, or what PyTorch and ONNX Runtime
            on the plain file round by, where that is more (``st3fx.export.rounding``).
    """

    path: Path
    kernels: KernelReport
    open_inputs: tuple[str, ...]
    parity: tuple[Parity, ...]
    tolerance: float

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "kernels": self.kernels.to_dict(),
        }
