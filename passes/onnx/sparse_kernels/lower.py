"""Puts sparse kernels into a graph: the pass that finds patterns, chooses, and replaces nodes."""

from __future__ import annotations

import collections

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.sparse_kernels.choose import (
    State,
    changes,
    choose,
    classes,
    dense_seconds,
    is_ours,
    sparse_seconds,
)
from st3fx.passes.onnx.sparse_kernels.emit import Emitter
from st3fx.passes.onnx.sparse_kernels.fuse import units
from st3fx.passes.onnx.sparse_kernels.kernel_report import KernelReport, KernelRow
from st3fx.passes.onnx.sparse_kernels.patterns import role
from st3fx.passes.onnx.sparse_kernels.role import Refused, Role
from st3fx.runtime.calibration import Calibration
from st3fx.runtime.costs import Costs
from st3fx.runtime.inference import DOMAIN, OPSET


class SparseKernels(GraphPass):
    """Puts sparse kernels into a graph where they win.

    The graph is as ``pipeline.prepare`` leaves it, with shapes.

    Attributes:
        changed: Names of the weights that sparse kernels multiply with.
        kept: Name of a weight that no sparse kernel can multiply with -> why.
        report: What was chosen for each layer, once the pass has run.
    """

    report: KernelReport

    def __init__(self, calibration: Calibration) -> None:
        """Choose by the constants of a cost model."""
        super().__init__()
        self._calibration = calibration

    def apply(self, model: ir.Model) -> bool:
        """Choose, then replace nodes."""
        found = {node: result for node in model.graph if (result := role(node)) is not None}
        roles = {node: result for node, result in found.items() if isinstance(result, Role)}
        groups, costs = classes(roles), self._calibration.costs
        state = choose(roles, groups, costs)
        rows = tuple(
            _row(result, state, costs) for result in found.values()
            if isinstance(result, Refused) or result.is_sparse
        )  # fmt: skip
        replaced = units(roles, lambda item: is_ours(item, state, groups.of))
        needed = changes(roles, state, groups, state.blocked)
        Emitter(model.graph, state, groups).emit(replaced, needed, roles)
        operators = _operators(model.graph)
        if operators:
            model.opset_imports[DOMAIN] = OPSET
        cleaned = common.RemoveUnusedNodesPass()(model)
        self.report = KernelReport(rows, operators, self._calibration.source)
        self.changed = [row.name for row in rows if row.is_sparse]
        self.kept = {row.name: row.reason for row in rows if row.reason}
        return bool(operators) or cleaned.modified


def _operators(graph: ir.Graph) -> dict[str, int]:
    return dict(collections.Counter(node.op_type for node in graph if node.domain == DOMAIN))


def _row(found: Role | Refused, state: State, costs: Costs) -> KernelRow:
    node = found.node
    if isinstance(found, Refused):
        return KernelRow(found.weight, node.op_type, found.shape, None, None, None,
                         is_sparse=False, reason=found.reason)  # fmt: skip
    assert found.weight is not None
    array = found.weight.rows
    return KernelRow(
        name=found.weight.name,
        op=node.op_type,
        shape=found.weight.shape,
        sparsity=1 - np.count_nonzero(array) / max(array.size, 1),
        sparse_us=1e6 * sparse_seconds(found, costs, blocked=bool(found.images)),
        dense_us=1e6 * dense_seconds(found, costs),
        is_sparse=node in state.sparse,
    )
