"""The opset of the file: what can be asked for, and the way down from the exporter's own."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from st3fx.errors import ExportError
from st3fx.onnx_passes.lower_opset import LOWEST, least_opset, lower_opset
from st3fx.onnx_passes.older_operators import TooNewError

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
            lower_opset(model, opset)
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
