"""Keeps the products of one weight with one value apart where a model has several of them.

The optimiser's common-subexpression pass would leave one: the file would do less than the model
that it was exported from, and their multiplications could not be compared. ONNX Runtime joins such
nodes when it loads a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.replacing import replaced

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
