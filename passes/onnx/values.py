"""Values of an ONNX graph: constants, users, sizes of images, names that are free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Image:
    """Channels and size of a tensor of images, without its batch."""

    channels: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Pixels."""
        return self.height * self.width

    @property
    def nbytes(self) -> int:
        """The memory that one image takes in float32."""
        return 4 * self.channels * self.positions


def is_op(node: ir.Node | None, *names: str) -> bool:
    """Whether a node is one of these operators of ONNX."""
    return node is not None and node.domain == "" and node.op_type in names


def image(value: ir.Value | None) -> Image | None:
    """What a float32 tensor holds whose channels, height and width are known; else ``None``."""
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return None
    sizes = list(value.shape)
    if len(sizes) != 4 or not all(isinstance(size, int) for size in sizes[1:]):
        return None
    return Image(*(int(size) for size in sizes[1:]))  # type: ignore[arg-type]


def rows(value: ir.Value | None) -> int:
    """Vectors along the last dimension, for one sample: free sizes are 1, ``12*batch`` is 12.

    Digits of a name, as in ``unk__13``, are no size.
    """
    if value is None or value.shape is None:
        return 1
    numbers = re.findall(r"(?<!\w)\d+", " ".join(str(size) for size in list(value.shape)[:-1]))
    return math.prod(max(int(number), 1) for number in numbers)


def constant(value: ir.Value | None) -> Array | None:
    """The values of an initializer or a Constant node; else ``None``."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def matrix(value: ir.Value | None) -> tuple[str, Array] | None:
    """Name and values of a constant float32 weight, through a transposition; else ``None``."""
    node = value.producer() if value is not None else None
    if node is not None and is_op(node, "Transpose") and len(node.inputs) == 1:
        inner = matrix(node.inputs[0])
        order = node.attributes.get_ints("perm")
        return None if inner is None else (inner[0], inner[1].transpose(order))
    array = constant(value)
    if array is None or value is None or array.dtype != np.float32:
        return None
    return str(value.name), array


def bias(value: ir.Value | None, size: int) -> Array | None:
    """A constant float32 bias as ``[size]``; ``None`` where it is computed or does not fit."""
    array = constant(value)
    if array is None or array.dtype != np.float32 or array.size not in (1, size):
        return None
    if array.size == size and size not in array.shape[-1:]:
        return None  # along another dimension
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (size,)))


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, where it is the only reader and reads it once."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def take_place(value: ir.Value, node: ir.Node) -> None:
    """Put a value in the place of a node's first output, under its name, and take the node away."""
    old, graph = node.outputs[0], node.graph
    assert graph is not None
    value.shape, value.type, name = old.shape, old.type, old.name
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name


def free_name(graph: ir.Graph, name: str) -> str:
    """A name that no initializer has yet: this one, or with a number behind it."""
    number, free = 1, name
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    return free


def new_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer of a graph, under a name that must be free."""
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.initializers[name] = value
    return value


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """An initializer of this name, or one with a number behind it, that holds an array."""
    number, free = 1, name
    while (value := graph.initializers.get(free)) is not None:
        held = None if value.const_value is None else value.const_value.numpy()
        if held is not None and held.dtype == array.dtype and np.array_equal(held, array):
            return value
        number += 1
        free = f"{name}_{number}"
    return new_initializer(graph, free, array)
