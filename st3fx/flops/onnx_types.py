"""Types and shapes of the values of an ONNX graph, inferred node by node.

Each node is inferred by onnx itself, with the constants that it reads, or by ONNX Runtime where the
operator is its own. A pass over the whole graph (onnx_ir's ShapeInferencePass after onnxscript's
FoldConstantsPass) leaves shapes open of one in five graphs that the tests count: it knows no
operators of ONNX Runtime and does not step through loops, whose sizes may change from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import numpy_helper, shape_inference

from st3fx.errors import FlopsError, describe
from st3fx.flops import onnx_node
from st3fx.flops.onnx_values import Values
from st3fx.runtime.operators import Shape

SMALL = 4096
"""Scalars up to which a constant is shown to shape inference."""


_REFUSALS = (
    onnx.checker.ValidationError, onnx.defs.SchemaError, shape_inference.InferenceError,
    RuntimeError,
)  # fmt: skip

_ANYTHING = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
"""What a lost value is taken for: a tensor of some size, as of a layer."""


class Types:
    """Name -> type, for every value that was reached.

    Values whose shape depends on an operator that the report names are *lost*: what reads them is
    named in turn, and no error.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, onnx.TypeProto]) -> None:
        self._model = model
        self._found = dict(inputs)
        self._unknown: dict[str, str] = {}
        self._lost: set[str] = set()
        versions = {item.domain: item.version for item in model.opset_import}
        self.version = versions.get("", versions.get("ai.onnx", 1))
        for item in model.graph.initializer:
            self.put(item.name, item.data_type, tuple(item.dims))
        for sparse in model.graph.sparse_initializer:
            self.put(sparse.values.name, sparse.values.data_type, tuple(sparse.dims))
        values = (*model.graph.value_info, *model.graph.output)
        self._declared = {value.name: value.type for value in values}

    def put(self, name: str, element: int, shape: Shape) -> None:
        """Note the type of a value."""
        self.set(name, onnx.helper.make_tensor_type_proto(element, shape))

    def set(self, name: str, kind: onnx.TypeProto | None) -> None:
        """Note a type as it is; a value without sizes is lost."""
        self._lost.discard(name)
        self._found.pop(name, None)
        if sizes(kind) is None and (kind is None or kind.HasField("tensor_type")):
            self.lose([name])
        elif kind is not None:
            self._found[name] = kind

    def alias(self, name: str, other: str) -> None:
        """Note that a value is another one."""
        self.set(name, None if other in self._lost else self._found.get(other))

    def get(self, name: str) -> onnx.TypeProto | None:
        """The type of a value, as far as it is known."""
        return self._found.get(name)

    def lose(self, names: Iterable[str]) -> None:
        """Give up values, but for what the graph itself says of them."""
        for name in filter(None, names):
            declared = self._declared.get(name)
            self._found.pop(name, None)
            if declared is not None:
                self._found[name] = declared
            if sizes(declared) is None:
                self._lost.add(name)

    def is_lost(self, name: str) -> bool:
        """Whether a value was given up."""
        return name in self._lost

    def element(self, name: str) -> int:
        """Element type of a value; 0 where it is not known."""
        kind = self._found.get(name)
        return kind.tensor_type.elem_type if kind is not None else 0

    def shape(self, name: str) -> Shape | None:
        """Sizes of a value, if all are known."""
        return sizes(self._found.get(name))

    def infer(self, node: onnx.NodeProto, values: Values) -> None:
        """Note the types of a node's outputs.

        Raises:
            FlopsError: When the node contradicts the operator's definition.
        """
        missing = [n for n in node.input if n and n not in self._found and n not in self._lost]
        if missing:
            origin = self._unknown.get(missing[0], "nowhere in the graph")
            raise FlopsError(
                f"{onnx_node.label(node)}: the shape of {missing[0]!r} is not known; it comes "
                f"from {origin}"
            )
        from_lost = any(name in self._lost for name in node.input)
        found = self._inferred(node, values, strict=not from_lost)
        for name in filter(None, node.output):
            # Where inference gives up, the exporter may have known.
            if sizes(found.get(name)) is None and sizes(self._declared.get(name)) is not None:
                found[name] = self._declared[name]
            is_known = sizes(found.get(name)) is not None
            foreign = node.domain not in onnx_node.STANDARD
            self._found.pop(name, None)
            self._lost.discard(name)
            if not is_known and (from_lost or foreign):
                self.lose([name])
            elif name not in found:
                self._unknown[name] = onnx_node.label(node)
        self._found.update(found)

    def _inferred(
        self, node: onnx.NodeProto, values: Values, *, strict: bool
    ) -> dict[str, onnx.TypeProto]:
        arrays = {
            name: array
            for name in dict.fromkeys(filter(None, node.input))
            if name in values and (array := values.array(name)).size <= SMALL
        }
        types = {name: self._found[name] for name in node.input if name in self._found}
        if node.domain not in onnx_node.STANDARD:
            return self._by_runtime(node, values, types)
        for name in node.input:
            if name in self._lost:
                types.setdefault(name, _ANYTHING)
        try:
            return shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self.version, ""),
                node,
                types,
                {name: numpy_helper.from_array(array) for name, array in arrays.items()},
                opset_imports=list(self._model.opset_import),
                ir_version=self._model.ir_version,
            )
        except _REFUSALS as error:
            found = self._by_runtime(node, values, types)
            if strict and not found:
                raise FlopsError(f"{onnx_node.label(node)}: {describe(error)}") from error
            return found

    def _by_runtime(
        self, node: onnx.NodeProto, values: Values, types: Mapping[str, onnx.TypeProto]
    ) -> dict[str, onnx.TypeProto]:
        """Operators that ONNX Runtime alone knows."""
        if len(types) < len({*filter(None, node.input)}):
            return {}
        arrays = {name: values.array(name) for name in types if name in values}
        return onnx_node.infer(node, values.context, types, arrays)


def sizes(kind: onnx.TypeProto | None) -> Shape | None:
    """Sizes of a tensor type, if all are known."""
    if kind is None or not kind.HasField("tensor_type"):
        return None
    if not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    known = all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None
