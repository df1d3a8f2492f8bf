"""What the lowering of a quantized graph chose: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class QuantRow:
    """One layer with a weight.

    Attributes:
        name: Of the weight.
        op: Of ONNX.
        shape: Of the weight.
        sparsity: Share of zeros; ``None`` where the values are not known.
        blocks: Share of the blocks of four input channels that have a nonzero; ``None`` likewise.
        ours_us: Expected microseconds of our kernel for one sample on one thread; ``None`` where
            there is none.
        dense_us: Expected microseconds of ONNX Runtime's own INT8; ``None`` likewise.
        is_ours: What was chosen.
        reason: Why it is not ours; empty where it is.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    sparsity: float | None
    blocks: float | None
    ours_us: float | None
    dense_us: float | None
    is_ours: bool
    reason: str = ""


@dataclass(frozen=True)
class QuantReport:
    """The choice for a graph.

    Attributes:
        rows: One for each layer, in the graph's order.
        operators: Of ours -> how many there are; nothing where the graph is as it was.
    """

    rows: tuple[QuantRow, ...]
    operators: dict[str, int]

    @property
    def ours(self) -> int:
        """Layers that our kernels compute."""
        return sum(row.is_ours for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON values."""
        return {**dataclasses.asdict(self), "ours": self.ours}
