"""What the lowering chose: plain data that turns itself into JSON values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KernelRow:
    """One layer with a weight.

    Attributes:
        name: Of the weight.
        op: Of ONNX.
        shape: Of the weight.
        sparsity: Share of its zeros; ``None`` where its values are not known.
        sparse_us: Expected microseconds of the sparse kernel for one sample on one thread;
            ``None`` where there is none.
        dense_us: Expected microseconds of ONNX Runtime's own; ``None`` likewise.
        is_sparse: What was chosen.
        reason: Why there is no sparse kernel; empty where there is one.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    sparsity: float | None
    sparse_us: float | None
    dense_us: float | None
    is_sparse: bool
    reason: str = ""


@dataclass(frozen=True)
class KernelReport:
    """The choice for a graph.

    Attributes:
        rows: One for each layer, in the graph's order.
        operators: Of ours -> how many there are.
        constants: Where the constants of the cost model come from.
    """

    rows: tuple[KernelRow, ...]
    operators: dict[str, int]
    constants: str

    @property
    def sparse(self) -> int:
        """Layers with a sparse kernel."""
        return sum(row.is_sparse for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """This report as JSON values."""
        return {**dataclasses.asdict(self), "sparse": self.sparse}
