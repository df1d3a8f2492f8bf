"""How a model is quantized."""

from __future__ import annotations

from dataclasses import dataclass

from st3fx.errors import QuantizeError

DYNAMIC = "dynamic"
"""The range of an activation is found anew in each call, by the file itself."""

CALIBRATIONS = ("minmax", "percentile", "entropy")
"""How the range of an activation comes from what was seen of it."""

METHODS = (*CALIBRATIONS, DYNAMIC)
"""How an activation gets its range."""

WEIGHT_RANGES = ("safe", "full")
"""How much of an int8 a weight uses: see ``st3fx.quantization.qdq.weight_scales``."""


@dataclass(frozen=True)
class Settings:
    """How to quantize.

    Attributes:
        calibration: One of :data:`METHODS`.
        percentile: With ``percentile``, how many of a hundred values a range keeps.
        keep_fp32: Globs over names of weights, or of the modules that own them, that stay in fp32.
        max_drop: Points of accuracy that may be lost; ``None``: whatever is.
        weight_range: ``full`` uses all of an int8, ``safe`` as much as overflows on no CPU.
        rank: Whether each layer is tried in fp32.
        sparse_kernels: Whether a second file has our kernels where they gain.
    """

    calibration: str = "minmax"
    percentile: float = 99.99
    keep_fp32: tuple[str, ...] = ()
    max_drop: float | None = None
    weight_range: str = "safe"
    rank: bool = True
    sparse_kernels: bool = False

    @property
    def is_dynamic(self) -> bool:
        """Whether the file finds the ranges of activations itself."""
        return self.calibration == DYNAMIC

    def __post_init__(self) -> None:
        """Refuse what no file can be made with.

        Raises:
            QuantizeError: For a value outside its range.
        """
        if self.calibration not in METHODS:
            raise QuantizeError(f"calibration {self.calibration!r}: give {' or '.join(METHODS)}")
        if not 50 < self.percentile <= 100:
            raise QuantizeError(f"percentile {self.percentile:g}: give a number from 50 to 100")
        if self.weight_range not in WEIGHT_RANGES:
            raise QuantizeError(
                f"weight range {self.weight_range!r}: give {' or '.join(WEIGHT_RANGES)}"
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise QuantizeError(f"max drop {self.max_drop:g}: give points of accuracy, e.g. 0.5")
