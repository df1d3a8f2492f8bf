"""The order of the passes between the exporter and the file."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from st3fx.onnx_passes.fold_batch_norm import BatchNorms, fold_batch_norm
from st3fx.onnx_passes.positive_zeros import positive_zeros
from st3fx.onnx_passes.repeated_products import repeated_products

_NOTES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""What the exporter notes at each node; it holds paths of the machine that exported."""


def prepare(model: ir.Model, parameters: set[str]) -> BatchNorms:
    """Bring a freshly exported graph into the form in which it is written, in place.

    Args:
        model: As ``torch.onnx.export(..., optimize=False)`` gives it.
        parameters: Names of initializers that are never computed with: they stay what they are.

    Returns:
        What became of the batch norms.
    """

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type in ("Shape", "Size"):
            return None  # does not read the values
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    common.InlinePass()(model)
    # A convolution without bias comes with one that is computed: it must be constant by then.
    optimizer.fold_constants_ir(model, should_fold=should_fold)
    norms = fold_batch_norm(model)
    with repeated_products():
        optimizer.optimize_ir(model, should_fold=should_fold)
    positive_zeros(model, parameters)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for key in _NOTES:
            node.metadata_props.pop(key, None)
    return norms
