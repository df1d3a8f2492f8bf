"""The opset of the file: what can be asked for, and the way down from the exporter's own."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from st3fx.errors import ExportError

LOWEST = 7
"""As far down as onnx has adapters for some operators."""

EXPORTERS = 18
"""The exporter's operators are written in it: it goes up from there, onnx goes down."""


def check_opset(opset: int | None) -> None:
    """Fail early for an opset that no model can have.

    Raises:
        ExportError: Outside of what onnx knows.
    """
    highest = onnx.defs.onnx_opset_version()
    if opset is not None and not LOWEST <= opset <= highest:
        raise ExportError(
            f"opset {opset} cannot be had: onnx {onnx.__version__} knows {LOWEST} to {highest}"
        )


def lowered(model: ir.Model, opset: int | None) -> ir.Model:
    """The model in a lower opset than the exporter writes; itself where that is not asked for.

    Raises:
        ExportError: When an operator has no form in it.
    """
    written = model.opset_imports.get("", 0)
    if opset is None or opset == written:
        return model
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), opset)
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[0].rpartition("failed: ")[2]
        raise ExportError(
            f"opset {opset} cannot be had for this model: {reason}; it has opset {written}"
        ) from error
    return ir.from_proto(proto)
