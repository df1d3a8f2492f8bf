"""Types and shapes of the values of an ONNX graph, inferred node by node."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import numpy_helper, shape_inference

from st3fx.core.messages import describe
from st3fx.errors import FlopsError
from st3fx.flops import onnx_node
from st3fx.flops.onnx_file import Shape
from st3fx.flops.onnx_values import Values

SMALL = 4096
"""Scalars up to which a constant is shown to shape inference."""

CONTROL = ("If", "Loop", "Scan")
"""Operators with graphs of their own."""


class Types:
    """Name -> type, for every value that was reached."""

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, onnx.TypeProto]) -> None:
        self._model = model
        self._found = dict(inputs)
        self._unknown: dict[str, str] = {}
        versions = {item.domain: item.version for item in model.opset_import}
        self.version = versions.get("", versions.get("ai.onnx", 1))
        self.declare(model.graph)
        values = (*model.graph.value_info, *model.graph.output)
        self._declared = {value.name: value.type for value in values}

    def declare(self, graph: onnx.GraphProto) -> None:
        """Take in the initializers of a graph, or of a branch in it."""
        for item in graph.initializer:
            self.put(item.name, item.data_type, tuple(item.dims))
        for sparse in graph.sparse_initializer:
            self.put(sparse.values.name, sparse.values.data_type, tuple(sparse.dims))

    def put(self, name: str, element: int, shape: Shape) -> None:
        """Note the type of a value."""
        self._found[name] = onnx.helper.make_tensor_type_proto(element, shape)

    def alias(self, name: str, other: str) -> None:
        """Note that a value is another one."""
        if other in self._found:
            self._found[name] = self._found[other]

    def element(self, name: str) -> int:
        """Element type of a value."""
        return self._found[name].tensor_type.elem_type

    def shape(self, name: str) -> Shape | None:
        """Sizes of a value, if all are known."""
        return _sizes(self._found.get(name))

    def infer(self, node: onnx.NodeProto, values: Values) -> None:
        """Note the types of a node's outputs.

        Loops and branches that are not decided keep what the graph itself says of their outputs.

        Raises:
            FlopsError: When the node contradicts the operator's definition.
        """
        missing = [name for name in node.input if name and name not in self._found]
        if missing:
            origin = self._unknown.get(missing[0], "nowhere in the graph")
            raise FlopsError(
                f"{onnx_node.label(node)}: the shape of {missing[0]!r} is not known; it comes "
                f"from {origin}"
            )
        found = {} if node.op_type in CONTROL else self._inferred(node, values)
        for name in node.output:
            # Where inference gives up, the exporter may have known.
            if _sizes(found.get(name)) is None and _sizes(self._declared.get(name)) is not None:
                found[name] = self._declared[name]
            if name not in found:
                self._unknown[name] = onnx_node.label(node)
        self._found.update(found)

    def _inferred(self, node: onnx.NodeProto, values: Values) -> dict[str, onnx.TypeProto]:
        data = {
            name: numpy_helper.from_array(array)
            for name in node.input
            if name in values and (array := values.array(name)).size <= SMALL
        }
        try:
            return shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self.version, ""),
                node,
                {name: self._found[name] for name in node.input if name},
                data,
                opset_imports=list(self._model.opset_import),
                ir_version=self._model.ir_version,
            )
        except (onnx.defs.SchemaError, shape_inference.InferenceError, RuntimeError) as error:
            raise FlopsError(f"{onnx_node.label(node)}: {describe(error)}") from error


def _sizes(kind: onnx.TypeProto | None) -> Shape | None:
    """Sizes of a tensor type, if all are known."""
    if kind is None or not kind.HasField("tensor_type"):
        return None
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    known = all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None
