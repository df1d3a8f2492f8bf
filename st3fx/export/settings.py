"""How a model is exported."""

from __future__ import annotations

from dataclasses import dataclass

from st3fx.errors import ExportError
from st3fx.export.free import BATCH, FreeSize
from st3fx.export.opset import check_opset


@dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
        opset: ``None`` for the exporter's default.
        fixed_batch: Leave the batch size as it is in the example.
        batch_sizes: That are compared with random values; not looked at with a fixed batch.
        verify: Run the file beside the model.
        sparse_initializers: Store weights as index and value where that is smaller.
        eliminate_dead_channels: Remove channels that are constant or that nothing reads; ``None``
            for what suits the kernels that run the file: dense ones are given the whole model.
        tolerance: Largest relative difference that passes; ``None``: by the type of the weights.
        seed: Of the random values.
        sparse_kernels: Write a file with sparse operators too.
        free: Sizes beside the batch that are free in the file, and where the batch is if it is
            not dimension 0.
    """

    opset: int | None = None
    fixed_batch: bool = False
    batch_sizes: tuple[int, ...] = (1, 3)
    verify: bool = True
    sparse_initializers: bool = False
    eliminate_dead_channels: bool | None = None
    tolerance: float | None = None
    seed: int = 0
    sparse_kernels: bool = False
    free: tuple[FreeSize, ...] = ()

    @property
    def is_reduced(self) -> bool:
        """Whether dead channels go: where nothing is said, sparse kernels want it so."""
        if self.eliminate_dead_channels is None:
            return self.sparse_kernels
        return self.eliminate_dead_channels

    def __post_init__(self) -> None:
        """Refuse what no export can be made with.

        Raises:
            ExportError: For an opset, batch size or tolerance outside its range.
        """
        check_opset(self.opset)
        if not self.batch_sizes or any(size < 1 for size in self.batch_sizes):
            raise ExportError(f"batch sizes {self.batch_sizes}: give numbers from 1 on, e.g. 1,3")
        others = [item for item in self.free if item.name != BATCH]
        if others and (self.is_reduced or self.sparse_kernels):
            raise ExportError(
                "free sizes cannot be had together with sparse kernels or without dead channels"
            )
        if self.fixed_batch and len(others) < len(self.free):
            raise ExportError("a batch that is named is free: leave --fixed-batch out, or the name")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ExportError(f"tolerance {self.tolerance}: give a number above 0, e.g. 1e-4")
