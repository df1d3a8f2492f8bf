"""How long a graph's layers take at numbers of nonzeros that it does not have yet.

The choice between sparse and dense kernels, layout changes included, is made anew for each, as the
lowering would make it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from st3fx.passes.onnx.sparse_kernels.choose import (
    choose,
    classes,
    dense_seconds,
    expected_seconds,
)
from st3fx.passes.onnx.sparse_kernels.patterns import role
from st3fx.passes.onnx.sparse_kernels.role import Role
from st3fx.runtime.costs import Costs


class GraphTimes:
    """The layers of a graph that have a sparse kernel.

    Attributes:
        names: Of their weights.
    """

    def __init__(self, graph: ir.Model, costs: Costs) -> None:
        """Find them.

        Args:
            graph: As an export writes it, with shapes.
            costs: The constants of the model.
        """
        found = {node: result for node in graph.graph if (result := role(node)) is not None}
        self._roles = {node: result for node, result in found.items() if isinstance(result, Role)}
        self._classes, self._costs = classes(self._roles), costs
        layers = [item for item in self._roles.values() if item.weight is not None and item.work]
        self.names = tuple(dict.fromkeys(item.weight.name for item in layers if item.weight))

    @classmethod
    def of_file(cls, path: Path, costs: Costs) -> GraphTimes:
        """Those of a file that an export has just written, in which few shapes are noted."""
        graph = ir.load(path)
        common.ShapeInferencePass(check_type=False, strict_mode=False)(graph)
        return cls(graph, costs)

    @property
    def dense(self) -> float:
        """Seconds that these layers take without sparse kernels."""
        layers = (item for item in self._roles.values() if item.is_sparse)
        return sum(dense_seconds(item, self._costs) for item in layers)

    def at(self, nonzeros: Mapping[str, int]) -> float:
        """Seconds of these layers, and of the layout changes between them.

        Args:
            nonzeros: Name of a weight -> how many it has; of others those that it has now.
        """
        roles = {node: _with(item, nonzeros) for node, item in self._roles.items()}
        state = choose(roles, self._classes, self._costs)
        return expected_seconds(roles, self._classes, self._costs, state)


def _with(item: Role, nonzeros: Mapping[str, int]) -> Role:
    if item.weight is None or item.work is None or item.weight.name not in nonzeros:
        return item
    work = dataclasses.replace(item.work, nonzeros=nonzeros[item.weight.name])
    return dataclasses.replace(item, work=work)
