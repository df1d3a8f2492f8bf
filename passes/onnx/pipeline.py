"""The order of the passes between the exporter and the file.

Makes the zeros of weights +0.0: a product with a mask leaves -0.0 in their place.

Keeps the products of one weight with one value apart where a model has several of them.

The optimiser's common-subexpression pass would leave one: the file would do less than the model
that it was exported from, and their multiplications could not be compared. ONNX Runtime joins such
nodes when it loads a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from st3fx.modules.state import replaced
from st3fx.passes.onnx.fold_batch_norm import BatchNorms, fold_batch_norm


def positive_zeros(model: ir.Model, parameters: Collection[str]) -> None:
    """Take the sign off every zero of the named initializers, in place.

    Args:
        model: The graph.
        parameters: Names. Other constants stay as they are: what divides by one may tell -0.0.
    """
    for name in parameters:
        value = model.graph.initializers.get(name)
        tensor = None if value is None else value.const_value
        if value is None or tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        zero = array == 0
        if (zero & np.signbit(array)).any():
            value.const_value = ir.tensor(
                np.where(zero, array.dtype.type(0), array), dtype=tensor.dtype, name=name
            )


_PRODUCTS = frozenset(
    ("Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
)
_PLACE = "st3fx_place"


@contextlib.contextmanager
def repeated_products() -> Iterator[None]:
    """Inside, no two products are taken for one."""
    pass_class = common.CommonSubexpressionEliminationPass
    original = pass_class.call

    def call(self: Any, model: ir.Model) -> ir.passes.PassResult:
        for place, node in enumerate(model.graph):
            if node.op_type in _PRODUCTS and node.domain == "":
                node.attributes[_PLACE] = ir.AttrInt64(_PLACE, place)
        try:
            return original(self, model)
        finally:
            for node in model.graph:
                node.attributes.pop(_PLACE, None)

    with replaced(pass_class, {"call": call}):
        yield


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
