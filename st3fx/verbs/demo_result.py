"""What a demo is made of, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st3fx.bench.result import BenchResult, BenchRow
from st3fx.export.result import ExportResult, FoldResult
from st3fx.flops.report import FlopsReport
from st3fx.report.result import ReportResult
from st3fx.training.result import TrainResult


@dataclass(frozen=True)
class DemoSettings:
    """How large a demo is.

    The defaults are the shortest training found in which a small residual network learns well; the
    images are not shifted or mirrored, which pays only in longer ones.

    Attributes:
        spec: A reference model.
        sparsity: Share of zeros in the end.
        epochs: Of each training.
        batch_size: Images per step.
        lr: Peak learning rate.
        seed: For weights and shuffling.
        bench_seconds: Of timed calls for each variant.
    """

    spec: str = "st3fx:resnet20"
    sparsity: float = 0.9
    epochs: int = 6
    batch_size: int = 32
    lr: float = 0.05
    seed: int = 0
    bench_seconds: float = 4.0

    def training(self) -> dict[str, Any]:
        """Settings that both trainings share."""
        return {
            "epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "nesterov": True,
            "augment": False, "channels_last": True, "seed": self.seed,
        }  # fmt: skip


@dataclass(frozen=True)
class DemoResult:
    """What a demo measured.

    Attributes:
        folder: Where everything lies.
        name: Of the model.
        dense: The training without sparsity.
        sparse: The training with it.
        folded: The weights that are left, in a compact file.
        exported: The ONNX file with its checks.
        counted: Multiplications of one image.
        timed: Latency of one image.
        report: The page.
        seconds: For all of it, or for what was left of a demo that was gone on with.
        again: Whether it was.
    """

    folder: Path
    name: str
    dense: TrainResult
    sparse: TrainResult
    folded: FoldResult
    exported: ExportResult
    counted: FlopsReport
    timed: BenchResult
    report: ReportResult
    seconds: float
    again: bool = False

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the weights, dense and in the compact file."""
        before, after = self.folded.sizes
        return before.raw, after.raw

    @property
    def fastest(self) -> BenchRow:
        """Of the sparse model's rows, that with kernels that skip zeros if there is one."""
        return max(self.timed.rows[1:], key=lambda row: row.skips_zeros)

    def to_dict(self) -> dict[str, Any]:
        """This result as JSON values."""
        dense_bytes, sparse_bytes = self.bytes
        return {
            "folder": str(self.folder),
            "model": self.name,
            "accuracy": {"dense": self.dense.scores.top1, "sparse": self.sparse.scores.top1},
            "sparsity": self.sparse.sparsity,
            "macs": {"dense": self.counted.dense_macs, "sparse": self.counted.sparse_macs},
            "bytes": {"dense": dense_bytes, "sparse": sparse_bytes},
            "latency_ms": {row.name: row.median_ms for row in self.timed.rows},
            "onnx": str(self.exported.path),
            "report": str(self.report.path),
            "seconds": self.seconds,
        }
