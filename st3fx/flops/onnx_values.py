"""Constants of an ONNX graph: initializers, and what nodes compute from them alone.

ONNX Runtime computes them (``onnx_node``), one node at a time. onnxscript's FoldConstantsPass would
give the values too, but not which initializer they come from, by whose name the report lists a
weight and counts its zeros and bytes; and it would hold all of them, where here an array goes when
nothing reads it any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from st3fx.flops import onnx_node
from st3fx.flops.onnx_node import Context, compute
from st3fx.flops.operand import Constant, Weight
from st3fx.passes.onnx.normal_form import NormalForm, dense, reads

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

    def __init__(self, form: NormalForm) -> None:
        graph = form.model.graph
        self.context = Context.of(form.model)
        self._protos = {item.name: item for item in graph.initializer}
        self._sparse = list(graph.sparse_initializer)
        self._numbers = {
            item.name for item in graph.initializer if item.name in form.constants and not item.dims
        }
        self._arrays: dict[str, Array] = {item.values.name: dense(item) for item in self._sparse}
        self._sources: dict[str, _Source] = {}
        self._weights: dict[str, Weight] = {}
        self._constants: dict[tuple[str, str], Constant] = {}
        self._unpacked: dict[str, Constant] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a value is constant."""
        return name in self._arrays or name in self._protos

    def array(self, name: str) -> Array:
        """The values of a constant."""
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._protos[name])
        return self._arrays[name]

    def put(self, name: str, array: Array, source: str = "") -> None:
        """Note a value that was computed outside: a shape, or a part of another one."""
        self.forget([name])
        self._arrays[name] = np.asarray(array)
        found = self._source(source) if source else None
        if found is not None:
            self._sources[name] = found

    def alias(self, name: str, other: str) -> None:
        """Note that a value is another one, which is constant."""
        self.put(name, self.array(other), other)

    def forget(self, names: Iterable[str]) -> None:
        """Drop values that were computed: they are computed anew, or not constant any more."""
        for name in names:
            self._arrays.pop(name, None)
            self._sources.pop(name, None)
            for key in [key for key in self._constants if key[0] == name]:
                del self._constants[key]

    def release(self, name: str) -> None:
        """Drop an array that nothing reads any more: of large files they would not fit."""
        if name in self._protos or name in self._sources:
            self._arrays.pop(name, None)

    def evaluate(self, node: onnx.NodeProto) -> bool:
        """Compute a node of which all that it reads is constant.

        Returns:
            Whether anything could.
        """
        names = reads(node)
        outputs = compute(node, self.context, {name: self.array(name) for name in names})
        if outputs is None or not all(isinstance(o, np.ndarray | np.generic) for o in outputs):
            return False
        source = self._main_source(node, names)
        for name, array in zip([n for n in node.output if n], outputs, strict=True):
            self.put(name, array)
            if source is not None:
                self._sources[name] = source
        return True

    def _main_source(self, node: onnx.NodeProto, names: list[str]) -> _Source | None:
        sources = [source for name in names if (source := self._source(name)) is not None]
        if not sources:
            return None
        largest = self._largest(sources)
        moves = node.op_type in _MOVES
        size = largest.itemsize if moves or node.op_type == "DequantizeLinear" else 4
        return _Source(largest.name, size, moves and largest.moved)

    def _largest(self, sources: list[_Source]) -> _Source:
        """Choose the largest that a value is computed from; of a weight and its mask the weight."""
        sizes = [self.array(source.name).size for source in sources]
        large = [source for source, size in zip(sources, sizes, strict=True) if size == max(sizes)]
        return next((source for source in large[:-1] if not self._is_mask(source.name)), large[-1])

    def _is_mask(self, name: str) -> bool:
        array = self.array(name)
        return bool(((array == 0) | (array == 1)).all())

    def _source(self, name: str) -> _Source | None:
        if name in self._sources:
            return self._sources[name]
        if name not in self._protos and name not in self._arrays:
            return None
        array = self.array(name)
        return _Source(name, array.itemsize, moved=True) if array.size > 1 else None

    def constant(self, name: str, zero_point: str = "", axis: int = -1) -> Constant:
        """A constant as the rules see it.

        Args:
            name: Of the value.
            zero_point: Of the value that stands for zero, in a quantised weight.
            axis: Of the weight, along which there may be several of these.
        """
        key = (name, zero_point)
        if key not in self._constants:
            array = self.array(name)
            mask = torch.from_numpy(_nonzero(array, self._zero(zero_point), axis))
            source = self._source(name) or _Source(name, array.itemsize, moved=True)
            weight = self._weight(source, mask, plain=not zero_point)
            self._constants[key] = Constant(mask, weight, source.itemsize)
        return self._constants[key]

    def unpacked(self, name: str, mask: Array, itemsize: int) -> Constant:
        """A weight that is stored in a way of its own.

        Args:
            name: Of the initializer.
            mask: Where the weight is not zero.
            itemsize: Bytes of a scalar, rounded up.
        """
        if name not in self._unpacked:
            tensor = torch.from_numpy(np.ascontiguousarray(mask))
            self._unpacked[name] = Constant(tensor, Weight(name, tensor), itemsize)
        return self._unpacked[name]

    def _zero(self, name: str) -> Array | None:
        return self.array(name) if name and name in self else None

    def _weight(self, source: _Source, mask: torch.Tensor, *, plain: bool) -> Weight:
        if not source.moved or not plain:
            return Weight(source.name, mask)
        if source.name not in self._weights:
            array = self.array(source.name)
            whole = mask if mask.shape == array.shape else torch.from_numpy(_nonzero(array))
            self._weights[source.name] = Weight(source.name, whole)
        return self._weights[source.name]

    def parameters(self, weights: Collection[str]) -> int:
        """Scalars in all initializers that are no integers, or that are among ``weights``.

        Single numbers in Constant nodes are no parameters.
        """
        sizes = {name: int(np.prod(item.dims)) for name, item in self._protos.items()}
        sizes |= {item.values.name: int(np.prod(item.dims)) for item in self._sparse}
        sizes |= {name: constant.tensor.numel() for name, constant in self._unpacked.items()}
        kinds = {item.name: item.data_type for item in self._protos.values()}
        kinds |= {item.values.name: item.values.data_type for item in self._sparse}
        return sum(
            size
            for name, size in sizes.items()
            if name in weights or (onnx_node.is_floating(kinds[name]) and name not in self._numbers)
        )


def _nonzero(array: Array, zero: Array | None = None, axis: int = -1) -> npt.NDArray[np.bool_]:
    if zero is None or not zero.any():
        return np.asarray(array != 0)
    if zero.ndim == 1 and zero.size > 1:
        shape = [1] * array.ndim
        shape[axis] = -1
        zero = zero.reshape(shape)
    return np.asarray(array != zero)
