"""The order of the passes between the exporter and the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from st3fx.modules.state import replaced
from st3fx.passes.onnx.fold_batch_norm import FoldBatchNorm
from st3fx.passes.onnx.graph_pass import GraphPass

ShouldFold = Callable[[ir.Node], bool | None]
"""Whether a node of constants may be computed; ``None``: as the optimiser likes."""


def prepare(model: ir.Model, parameters: set[str]) -> FoldBatchNorm:
    """Bring a freshly exported graph into the form in which it is written, in place.

    Args:
        model: As ``torch.onnx.export(..., optimize=False)`` gives it.
        parameters: Names of initializers that are never computed with: they stay what they are.

    Returns:
        The pass that knows what became of the batch norms.
    """

    def should_fold(node: ir.Node) -> bool | None:
        if node.op_type in ("Shape", "Size"):
            return None  # does not read the values
        return False if any(v is not None and v.name in parameters for v in node.inputs) else None

    norms = FoldBatchNorm()
    ir.passes.Sequential(
        common.InlinePass(),
        # A convolution without bias comes with one that is computed: it must be constant by then.
        FoldConstants(should_fold),
        norms,
        Optimise(should_fold),
        PositiveZeros(parameters),
        ForgetNotes(),
    )(model)
    return norms


class FoldConstants(ir.passes.InPlacePass):
    """Computes nodes of constants, by onnxscript."""

    def __init__(self, should_fold: ShouldFold) -> None:
        super().__init__()
        self._should_fold = should_fold

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold; the result says whether anything was."""
        return optimizer.fold_constants_ir(model, should_fold=self._should_fold)


class Optimise(ir.passes.InPlacePass):
    """Runs onnxscript's optimiser, which leaves the products of one weight with one value apart.

    Its pass for common subexpressions would leave one of them: the file would do less than the
    model that it was exported from, and their multiplications could not be compared. ONNX Runtime
    joins such nodes when it loads a file.
    """

    def __init__(self, should_fold: ShouldFold) -> None:
        super().__init__()
        self._should_fold = should_fold

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Optimise; what was done the optimiser does not say."""
        with _repeated_products():
            optimizer.optimize_ir(model, should_fold=self._should_fold)
        return ir.passes.PassResult(model, modified=True)


_PRODUCTS = frozenset(
    ("Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
)
_PLACE = "st3fx_place"


@contextlib.contextmanager
def _repeated_products() -> Iterator[None]:
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


class PositiveZeros(GraphPass):
    """Takes the sign off every zero of some initializers: a product with a mask leaves -0.0."""

    def __init__(self, parameters: Collection[str]) -> None:
        """Name the initializers.

        Args:
            parameters: Names. Other constants stay as they are: what divides by one may tell -0.0.
        """
        super().__init__()
        self._parameters = parameters

    def apply(self, model: ir.Model) -> bool:
        """Change the initializers that have a negative zero."""
        for name in self._parameters:
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
                self.changed.append(name)
        return bool(self.changed)


class ForgetNotes(GraphPass):
    """Takes away what the exporter notes at nodes about paths of the machine that exported."""

    def apply(self, model: ir.Model) -> bool:
        """Clean all nodes, in branches and loops too."""
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if [node.metadata_props.pop(key) for key in _NOTES if key in node.metadata_props]:
                self.changed.append(str(node.name))
        return bool(self.changed)


_NOTES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
