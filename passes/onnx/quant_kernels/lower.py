"""Puts kernels for quantized numbers into a graph: what a file goes through, and the pass itself.

A graph that our kernels make no faster stays as it is.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.onnx.graph_pass import GraphPass, hushed
from st3fx.passes.onnx.normal_form import normal_form
from st3fx.passes.onnx.quant_kernels.choose_quant import choose, needs
from st3fx.passes.onnx.quant_kernels.emit_quant import QuantEmitter
from st3fx.passes.onnx.quant_kernels.free_sizes import note_sizes
from st3fx.passes.onnx.quant_kernels.layers import dense_blocks
from st3fx.passes.onnx.quant_kernels.patterns import role, unquantized
from st3fx.passes.onnx.quant_kernels.qdq_form import QdqForm, unpick
from st3fx.passes.onnx.quant_kernels.quant_report import QuantReport, QuantRow
from st3fx.passes.onnx.quant_kernels.quant_role import QuantRefused, QuantRole
from st3fx.runtime.costs import QuantCosts, dense_quant_seconds, quant_costs, quant_seconds
from st3fx.runtime.inference import DOMAIN, OPSET

_SLOWER = "ONNX Runtime's own INT8 is expected to be as fast"


@dataclass(frozen=True)
class LoweredFile:
    """A model with our operators, or as it was.

    Attributes:
        model: The graph; without bodies for runtimes that lack our library (``hints.add_hints``).
        report: What was chosen for each layer.
    """

    model: ir.Model
    report: QuantReport


def lower_quantized(model: onnx.ModelProto, costs: QuantCosts | None = None) -> LoweredFile:
    """Lower a quantized model to the operators of ``ops.md``, where they win.

    Args:
        model: With its weights; it stays as it is.
        costs: The constants of the cost model.

    Raises:
        ValueError: When the graph's nodes depend on each other in a circle.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with hushed():
        graph = ir.from_proto(normal_form(copy).model)
    QdqForm()(graph)
    # Weights stay out of it, which onnx would refuse beyond 2 GB.
    common.ShapeInferencePass(check_type=False, strict_mode=False)(graph)
    note_sizes(graph.graph)
    report = QuantKernels(costs or quant_costs()).applied_to(graph).report
    return LoweredFile(graph if report.operators else ir.from_proto(model), report)


class QuantKernels(GraphPass):
    """Puts kernels for quantized numbers into a graph where they win.

    The graph is in the form of ``QdqForm``, with shapes.

    Attributes:
        changed: Names of the weights that our kernels multiply with.
        kept: Name of a weight that they do not -> why.
        report: What was chosen for each layer, once the pass has run.
    """

    report: QuantReport

    def __init__(self, costs: QuantCosts) -> None:
        """Choose by the constants of a cost model."""
        super().__init__()
        self._costs = costs

    def apply(self, model: ir.Model) -> bool:
        """Choose, then replace nodes."""
        graph = model.graph
        found = {node: result for node in graph if (result := role(node)) is not None}
        roles = {one.result: one for one in found.values() if isinstance(one, QuantRole)}
        chosen = choose(graph, roles, self._costs)
        ours = needs(graph, roles, chosen).ours if chosen else set()
        listed = [one for one in found.values() if isinstance(one, QuantRefused) or one.weight]
        known = {one.weight if isinstance(one, QuantRefused) else one.name for one in listed}
        listed += [
            one for node in graph
            if (one := unquantized(node)) is not None and one.weight not in known
        ]  # fmt: skip
        rows = tuple(self._row(one, one in ours) for one in listed)
        if ours:
            self._emit(model, {value: one for value, one in roles.items() if one in ours})
        self.report = QuantReport(rows, _operators(graph))
        self.changed = [row.name for row in rows if row.is_ours]
        self.kept = {row.name: row.reason for row in rows if row.reason}
        return bool(ours)

    def _emit(self, model: ir.Model, ours: dict[ir.Value, QuantRole]) -> None:
        emitter = QuantEmitter(model.graph, ours)
        emitter.emit()
        unpick(model.graph)
        model.opset_imports[DOMAIN] = OPSET
        common.RemoveUnusedNodesPass()(model)
        emitter.name({str(value.name) for node in model.graph for value in node.outputs})

    def _row(self, found: QuantRole | QuantRefused, is_ours: bool) -> QuantRow:
        if isinstance(found, QuantRefused):
            return QuantRow(found.weight, found.node.op_type, found.shape, None, None, None, None,
                            is_ours=False, reason=found.reason)  # fmt: skip
        assert found.weight is not None
        array, held = found.weight.array, _kept_blocks(found)
        return QuantRow(
            name=found.name,
            op=found.op,
            shape=found.weight.shape,
            sparsity=1 - np.count_nonzero(array) / max(array.size, 1),
            blocks=held / max(dense_blocks(found), 1),
            ours_us=1e6 * quant_seconds(self._costs, found.work),
            dense_us=1e6 * dense_quant_seconds(self._costs, found.work),
            is_ours=is_ours,
            reason="" if is_ours else _SLOWER,
        )


def _kept_blocks(found: QuantRole) -> int:
    """Blocks of a layer that have a nonzero; a depthwise filter's weights are blocks of one."""
    for name, array in found.steps[0].constants.items():
        if name.endswith(".columns"):
            return int(array.size)
    assert found.weight is not None
    return int(np.count_nonzero(found.weight.array))


def _operators(graph: ir.Graph) -> dict[str, int]:
    return dict(collections.Counter(node.op_type for node in graph if node.domain == DOMAIN))
