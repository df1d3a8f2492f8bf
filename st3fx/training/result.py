"""What came of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from st3fx.training.evaluate import Scores


@dataclass(frozen=True)
class TrainResult:
    """A finished run, or with ``--test-only`` an evaluation.

    Attributes:
        name: Of the model.
        folder: Where the run is; ``None`` for the evaluation of a model without one.
        steps: Optimizer steps.
        seconds: How long this process trained; not counted is what came before a resumption.
        scores: Of the final model.
        best: Best top-1 accuracy of an epoch at the full sparsity, and that epoch.
        dense: Top-1 accuracy after the last epoch without any sparsity, if there was one.
        sparsity: Share of zeros in the sites.
        target: What was asked for; ``None`` for thresholds that are learned.
        layers: Share of zeros by site.
        empty: Sites without a weight left.
        dense_bytes: Of all weights before.
        files: Name -> bytes of what was written for use.
        compressed_bytes: Of the folded weights, compressed with zlib.
    """

    name: str
    folder: Path | None
    steps: int
    seconds: float
    scores: Scores
    best: tuple[float, int] | None
    dense: float | None
    sparsity: float
    target: float | None
    layers: dict[str, float]
    empty: tuple[str, ...]
    dense_bytes: int = 0
    files: dict[str, int] = field(default_factory=dict)
    compressed_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "folder": None if self.folder is None else str(self.folder),
            "empty": list(self.empty),
            "best": None if self.best is None else {"top1": self.best[0], "epoch": self.best[1]},
        }
