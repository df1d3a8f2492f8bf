"""What a quantization did: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.errors import QuantizeError
from st3fx.export.export_result import Size
from st3fx.export.quantized import QuantFile
from st3fx.files.atomic import replace_file
from st3fx.quantization.finetune import Finetuned


@dataclass(frozen=True)
class LayerRow:
    """One weight.

    Attributes:
        name: Of the parameter.
        op: Operator that multiplies with it.
        shape: As the file has it.
        weights: Scalars in it.
        zeros: Zeros in fp32.
        integer_zeros: Zeros among its integers; ``None`` where it stays in fp32.
        reason: Why it stays there; empty for a layer in integers.
        gain: Decibels that the outputs gain where this layer alone is in fp32; ``None`` where that
            was not tried.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    integer_zeros: int | None
    reason: str
    gain: float | None

    @property
    def rounded(self) -> int:
        """Weights that are zero as integers alone."""
        return 0 if self.integer_zeros is None else self.integer_zeros - self.zeros


@dataclass(frozen=True)
class Accuracy:
    """A score of both files on the same data.

    Attributes:
        fp32: Share, 0 to 1; larger is better.
        int8: The same.
        samples: How many there were; ``None`` where only the caller knows.
    """

    fp32: float
    int8: float
    samples: int | None = None

    @property
    def drop(self) -> float:
        """Points lost."""
        return 100 * (self.fp32 - self.int8)


@dataclass(frozen=True)
class QuantizeResult:
    """A written file of integers and what was checked.

    Attributes:
        path: The file.
        files: All that were written.
        opset: Of the default domain.
        calibration: How ranges were found.
        calibration_samples: Over how many samples; none with ``dynamic``.
        weight_range: ``safe`` or ``full``.
        layers: One for each weight.
        sqnr: Decibels of signal over noise at the output with the most; ``None`` where no output
            has real numbers.
        compared: Over how many samples.
        compared_new: Whether ranges were taken from others.
        accuracy: On the test data; ``None`` where there is none.
        tested_new: Whether that data is another than what chose the layers.
        held_out: On the data by which layers were left in fp32; ``None`` where none were asked for.
        max_drop: Points of it that could be lost; likewise.
        tried: How many files were scored for that.
        sizes: Of the fp32 file and of this one.
        seconds: For all of it.
        sparse: The file with our kernels, whose ``path`` is ``None`` where no layer gains by one;
            ``None`` where none was asked for.
        sparse_accuracy: Of that file on the test data, which is that in ``accuracy`` up to
            rounding; ``None`` where there is no such file or no test data.
        finetuned: What training did; ``None`` where there was none.
        calibrated: What the file scored on the test data before it; likewise.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    calibration: str
    calibration_samples: int
    weight_range: str
    layers: tuple[LayerRow, ...]
    sqnr: float | None
    compared: int
    compared_new: bool
    accuracy: Accuracy | None
    tested_new: bool
    held_out: Accuracy | None
    max_drop: float | None
    tried: int
    sizes: tuple[Size, ...]
    seconds: float
    sparse: QuantFile | None = None
    sparse_accuracy: float | None = None
    finetuned: Finetuned | None = None
    calibrated: float | None = None

    @property
    def integer(self) -> tuple[LayerRow, ...]:
        """The layers in integers."""
        return tuple(row for row in self.layers if row.integer_zeros is not None)

    @property
    def elements(self) -> int:
        """Scalars in these."""
        return sum(row.weights for row in self.integer)

    @property
    def zeros(self) -> int:
        """Zeros among these in fp32, which all are zeros still."""
        return sum(row.zeros for row in self.integer)

    @property
    def rounded(self) -> int:
        """Those that are zero as integers alone."""
        return sum(row.rounded for row in self.integer)

    @property
    def meets(self) -> bool | None:
        """Whether the test data agrees that no more was lost; ``None`` where no other data says."""
        if self.max_drop is None:
            return True
        if self.accuracy is None or not self.tested_new:
            return None
        return self.accuracy.drop <= self.max_drop

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        rows = [
            {**dataclasses.asdict(row), "rounded": row.rounded, "gain": _number(row.gain)}
            for row in self.layers
        ]
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "files": [str(path) for path in self.files],
            "layers": rows,
            "sqnr": _number(self.sqnr),
            "sparse": None if self.sparse is None else self.sparse.to_dict(),
            "zeros": self.zeros,
            "rounded": self.rounded,
            "elements": self.elements,
            "sparsity": self.zeros / self.elements if self.elements else 0.0,
            "meets": self.meets,
        }

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            QuantizeError: When that cannot be done.
        """
        content = json.dumps(self.to_dict(), indent=1).encode()
        try:
            replace_file(path, lambda file: file.write(content))
        except OSError as error:
            raise QuantizeError(f"cannot write {path}: {error.strerror or error}") from error


def _number(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return value if value is not None and math.isfinite(value) else None
