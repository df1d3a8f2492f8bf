"""Constants of an ONNX graph: initializers, and what nodes compute from them alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from st3fx.flops.operand import Constant, Weight

Array = npt.NDArray[Any]

_MOVES = frozenset(
    ("Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
     "Unsqueeze")
)  # fmt: skip
"""Nodes that give values of their first input back."""


@dataclass(frozen=True)
class _Source:
    """The initializer that a constant comes from, or is mostly made of."""

    name: str
    itemsize: int
    moved: bool


class Values:
    """Name -> array, for everything that does not depend on the graph's inputs."""

    def __init__(self, graph: onnx.GraphProto, opsets: Mapping[str, int]) -> None:
        self._opsets = dict(opsets)
        self._protos = {item.name: item for item in graph.initializer}
        self._sparse = list(graph.sparse_initializer)
        self._arrays: dict[str, Array] = {item.values.name: _dense(item) for item in self._sparse}
        self._sources: dict[str, _Source] = {}
        self._weights: dict[str, Weight] = {}
        self._constants: dict[tuple[str, str], Constant] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a value is constant."""
        return name in self._arrays or name in self._protos

    def array(self, name: str) -> Array:
        """The values of a constant."""
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._protos[name])
        return self._arrays[name]

    def put(self, name: str, array: Array) -> None:
        """Note a value that was computed outside: a shape."""
        self._arrays[name] = np.asarray(array)

    def evaluate(self, node: onnx.NodeProto) -> bool:
        """Compute a node whose inputs are all constant.

        Returns:
            Whether the reference implementation could.
        """
        names = [name for name in node.input if name]
        graph = onnx.helper.make_graph(
            [node],
            "constant",
            [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)],
            [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name],
        )
        try:
            outputs = ReferenceEvaluator(graph, opsets=self._opsets).run(
                None, {name: self.array(name) for name in names}
            )
        except Exception:  # noqa: BLE001 (whatever it cannot do stays a computed value)
            return False
        source = self._main_source(node, names)
        for name, array in zip([n for n in node.output if n], outputs, strict=True):
            if not isinstance(array, np.ndarray | np.generic):
                return False
            self._arrays[name] = np.asarray(array)
            if source is not None:
                self._sources[name] = source
        return True

    def _main_source(self, node: onnx.NodeProto, names: list[str]) -> _Source | None:
        sources = [source for name in names if (source := self._source(name)) is not None]
        if not sources:
            return None
        largest = max(sources, key=lambda source: self.array(source.name).size)
        moved = node.op_type in _MOVES and largest.moved
        size = largest.itemsize if moved or node.op_type == "DequantizeLinear" else 4
        return _Source(largest.name, size, moved)

    def _source(self, name: str) -> _Source | None:
        if name in self._sources:
            return self._sources[name]
        if name not in self._protos and name not in self._arrays:
            return None
        array = self.array(name)
        return _Source(name, array.itemsize, moved=True) if array.size > 1 else None

    def constant(self, name: str, zero_point: str = "") -> Constant:
        """A constant as the rules see it.

        Args:
            name: Of the value.
            zero_point: Of the value that stands for zero, in a quantised weight.
        """
        key = (name, zero_point)
        if key not in self._constants:
            array = self.array(name)
            mask = torch.from_numpy(_nonzero(array, self._zero(zero_point)))
            source = self._source(name) or _Source(name, array.itemsize, moved=True)
            weight = self._weight(source, mask, plain=not zero_point)
            self._constants[key] = Constant(mask, weight, source.itemsize)
        return self._constants[key]

    def _zero(self, name: str) -> Array | None:
        return self.array(name) if name and name in self else None

    def _weight(self, source: _Source, mask: torch.Tensor, *, plain: bool) -> Weight:
        if not source.moved or not plain:
            return Weight(source.name, mask)
        if source.name not in self._weights:
            array = self.array(source.name)
            whole = mask if mask.shape == array.shape else torch.from_numpy(_nonzero(array, None))
            self._weights[source.name] = Weight(source.name, whole)
        return self._weights[source.name]

    def parameters(self, weights: Collection[str]) -> int:
        """Scalars in all initializers that are no integers, or that are among ``weights``."""
        dense = [(item.name, item) for item in self._protos.values()]
        sparse = [(item.values.name, item.values) for item in self._sparse]
        sizes = {item.values.name: int(np.prod(item.dims)) for item in self._sparse}
        return sum(
            sizes.get(name, int(np.prod(item.dims)))
            for name, item in dense + sparse
            if name in weights or _floating(item)
        )


def _floating(item: onnx.TensorProto) -> bool:
    return bool(onnx.helper.tensor_dtype_to_np_dtype(item.data_type).kind in "fcV")


def _nonzero(array: Array, zero: Array | None) -> npt.NDArray[np.bool_]:
    if zero is None or not zero.any():
        return np.asarray(array != 0)
    if zero.ndim == 1 and zero.size > 1 and array.ndim > 2:
        zero = zero.reshape(-1, *[1] * (array.ndim - 1))  # one per output channel
    return np.asarray(array != zero)


def _dense(item: onnx.SparseTensorProto) -> Array:
    values, indices = numpy_helper.to_array(item.values), numpy_helper.to_array(item.indices)
    dense = np.zeros(tuple(item.dims), values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense
