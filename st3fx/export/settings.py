"""How a model is exported, and what its opset asks for.

The exporter writes opset 18 or higher; a file in an older one is lowered from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from st3fx.errors import ExportError
from st3fx.export.batch import BATCH, FreeSize
from st3fx.passes.onnx.lower_opset import LOWEST, LowerOpset, TooNewError, least_opset

EXPORTERS = 18
"""The exporter's operators are written in it: it goes up from there, we go down."""


def check_opset(opset: int | None) -> None:
    """Fail early for an opset that no model can have.

    Raises:
        ExportError: Outside of what can be written.
    """
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST <= opset <= highest:
        raise ExportError(
            f"opset {opset} cannot be had: st3fx writes {LOWEST} to {highest}, the last that onnx "
            f"{onnx.__version__} knows"
        )


def needed_opset(model: ir.Model, opset: int | None) -> int | None:
    """The opset that a model has to be captured in instead; ``None`` where it is as it should be.

    Args:
        model: As it was captured.
        opset: That was asked for.

    Raises:
        ExportError: When that one lacks an operator for a type.
    """
    least, reason = least_opset(model)
    if not reason:
        return None
    if opset is not None:
        raise ExportError(
            f"opset {opset} cannot be had for this model: {reason} is in ONNX from opset {least} "
            f"on; give --opset {least} or none"
        )
    return least


def lowered(model: ir.Model, opset: int | None) -> ir.Model:
    """The model in a lower opset than the exporter writes; itself where that is not asked for.

    A file of an opset that was asked for has the version of the format that came with it too:
    runtimes that know the one and not the other refuse it.

    Raises:
        ExportError: When an operator has no form in it.
    """
    written = model.opset_imports.get("", 0)
    if opset is None:
        return model
    if opset < written:
        try:
            LowerOpset(opset)(model)
        except TooNewError as error:
            raise ExportError(
                f"opset {opset} cannot be had for this model, which the exporter writes in "
                f"{written}: {error}; give a higher --opset, or none"
            ) from error
    _lower_format(model, opset)
    return model


def _lower_format(model: ir.Model, opset: int) -> None:
    version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    if version >= model.ir_version:
        return
    model.ir_version = version
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()  # newer than these formats


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
        if self.tolerance is not None and not 0 < self.tolerance < float("inf"):
            raise ExportError(f"tolerance {self.tolerance}: give a number above 0, e.g. 1e-4")
