"""ONNX files, anybody's: plain, with sparse kernels, of integers.

Weights are looked at one by one, also where they are in a file beside the graph. A weight is what a
product reads, at once or through operators that only move, cast or dequantize constants.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from st3fx.errors import InspectError, describe
from st3fx.files.ours import WRITER
from st3fx.flops.onnx_weights import PACKED, ZERO_POINTS, factors, is_product
from st3fx.inspection.found import Digest, Found, Layer, Port, share_of_zeros
from st3fx.passes.onnx.normal_form import all_nodes, bodies, open_inputs
from st3fx.passes.onnx.plain_operators import is_ours
from st3fx.passes.onnx.values import Array
from st3fx.runtime import onnx_seal as seal
from st3fx.runtime import operators
from st3fx.runtime.layout import BLOCK, blocks
from st3fx.runtime.open_model import open_model

_MOVES = ("DequantizeLinear", "Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze",
          "Flatten", "QuantizeLinear")  # fmt: skip
"""Operators of which the result has as many zeros as their first input, dequantized."""

_SPARSE = (operators.SPARSE_CONV, operators.SPARSE_LINEAR)
_BLOCKS = (operators.QUANT_CONV, operators.QUANT_LINEAR)
"""Operators of ours whose weights are in three parts: numbers, or blocks of four bytes."""

_DENSE = (operators.DEPTHWISE_CONV, operators.QUANT_DEPTHWISE_CONV)

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv",
              "QLinearMatMul", "ConvInteger", "MatMulInteger")  # fmt: skip


class _Constants:
    """Constants of a graph and of the bodies in it, by name; values are read when asked for."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._folder = folder
        self._dense: dict[str, TensorProto] = {}
        self._held: dict[str, onnx.SparseTensorProto] = {}
        self._take(model.graph)

    def _take(self, graph: onnx.GraphProto) -> None:
        self._dense |= {item.name: item for item in graph.initializer}
        self._held |= {item.values.name: item for item in graph.sparse_initializer}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name == "value":
                    self._dense[node.output[0]] = attribute.t
                elif attribute.name == "sparse_value":
                    self._held[node.output[0]] = attribute.sparse_tensor
            for body in bodies(node):
                self._take(body)

    def __contains__(self, name: str) -> bool:
        return name in self._dense or name in self._held

    def dims(self, name: str) -> tuple[int, ...]:
        """Sizes."""
        found = self._dense.get(name)
        return tuple(self._held[name].dims if found is None else found.dims)

    def kind(self, name: str) -> str:
        """Type of the scalars: ``float32``."""
        found = self._dense.get(name)
        number = self._held[name].values.data_type if found is None else found.data_type
        return _type_name(number)

    def array(self, name: str) -> Array:
        """The values of a dense one.

        Raises:
            ValueError: When its type has no values in NumPy.
        """
        tensor = self._dense[name]
        if not uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        info = {entry.key: entry.value for entry in tensor.external_data}
        itemsize = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        read = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
        with (self._folder / info["location"]).open("rb") as file:
            file.seek(int(info.get("offset", 0)))
            size = int(info.get("length", math.prod(tensor.dims) * itemsize))
            read.raw_data = file.read(size)
        return numpy_helper.to_array(read)

    def zeros(self, name: str, zero: Array | None, axis: int) -> int | None:
        """Scalars that are zero, or that equal the value that stands for it.

        Args:
            name: Of the constant.
            zero: One value, or one for each index of an axis.
            axis: Which.
        """
        if name in self._held:
            sparse = self._held[name]
            there = int(np.count_nonzero(numpy_helper.to_array(sparse.values)))
            return int(math.prod(sparse.dims)) - there
        array = self.array(name)
        if zero is None or not zero.any():
            return int(array.size - np.count_nonzero(array))
        if zero.size > 1:
            if zero.ndim > 1 or not -array.ndim <= axis < array.ndim:
                return None  # one for each block
            shape = [1] * array.ndim
            shape[axis] = -1
            zero = zero.reshape(shape)
        return int(np.count_nonzero(array == zero))


def look_graph(path: Path) -> Found:
    """An ONNX file.

    Raises:
        InspectError: When it is none, incomplete or damaged.
    """
    model = open_model(path, InspectError, weights=False, compared=True)
    constants = _Constants(model, path.parent)
    try:
        layers = tuple(_layers(model, constants))
    except (LookupError, ValueError, TypeError, ArithmeticError, OSError) as error:
        raise InspectError(f"{path} has damaged weights: {describe(error)}") from error
    kernels = Counter(operators.current_name(n.op_type) for n in model.graph.node if is_ours(n))
    data = path.with_name(f"{path.name}.data")
    beside = {data.name: data.stat().st_size} if _has_data(model) and data.is_file() else {}
    size = path.stat().st_size
    integers = any(node.op_type in (*_QUANTIZED, *operators.QUANT_OPERATORS)
                   for node in all_nodes(model.graph))  # fmt: skip
    known = [layer for layer in layers if layer.zeros is not None]
    return Found(
        str(path), _kind(sparse=bool(kernels), integers=integers), f"ONNX, IR {model.ir_version}",
        size + sum(beside.values()), files={path.name: size, **beside} if beside else {},
        versions=_versions(model), model=model.graph.name,
        reached=share_of_zeros(tuple(known)),
        parameters=_parameters(model, constants, layers),
        digests=_digests(path, beside), opsets=_opsets(model),
        inputs=tuple(map(_port, open_inputs(model.graph))),
        outputs=tuple(map(_port, model.graph.output)),
        kernels=dict(sorted(kernels.items())), layers=layers, notes=tuple(_notes(model, layers)),
    )  # fmt: skip


def _kind(*, sparse: bool, integers: bool) -> str:
    of = " of 8-bit integers" if integers else ""
    return f"ONNX graph{of}, with sparse kernels" if sparse else f"ONNX graph{of}"


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {item.domain or "ai.onnx": item.version for item in model.opset_import}


def _versions(model: onnx.ModelProto) -> dict[str, str]:
    name = model.producer_name
    return {name[:80]: model.producer_version[:80]} if name else {}


def _digests(path: Path, beside: dict[str, int]) -> tuple[Digest, ...]:
    if not seal.is_sealed(path):
        return ()
    return (Digest(path.name, holds=True), *(Digest(name, holds=True) for name in beside))


def _has_data(model: onnx.ModelProto) -> bool:
    return any(uses_external_data(tensor) for tensor in model.graph.initializer)


def _port(value: onnx.ValueInfoProto) -> Port:
    about = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return Port(value.name, f"{value.type.WhichOneof('value')}".removesuffix("_type"), ())
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in about.shape.dim
    )
    return Port(value.name, _type_name(about.elem_type) if about.elem_type else "?", dims)


def _type_name(number: int) -> str:
    """``float32``, ``int64``: as everybody else calls what ONNX has a number for."""
    name = str(helper.tensor_dtype_to_string(number)).rpartition(".")[2].lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _notes(model: onnx.ModelProto, layers: tuple[Layer, ...]) -> Iterator[str]:
    noted = operators.example_shapes(model)
    if noted:
        yield f"Its free sizes were {operators.example_text(noted)} in the example."
    hidden = [layer for layer in layers if layer.zeros is None]
    if hidden:
        yield f"{len(hidden)} of its weights are packed so that their zeros are not seen."
    if model.producer_name == WRITER and any(is_ours(node) for node in model.graph.node):
        yield "It needs the library of st3fx: st3fx.runtime.session(FILE) registers it."


def _parameters(model: onnx.ModelProto, constants: _Constants, layers: tuple[Layer, ...]) -> int:
    """Scalars of the weights that multiply, and of other constants of floating-point numbers."""
    counted = sum(layer.elements for layer in layers)
    multiplied = {part for layer in layers for part in _parts(layer.name)}
    floating = ("float32", "float16", "bfloat16", "float64")
    names = (item.name for item in model.graph.initializer)
    return counted + sum(
        math.prod(constants.dims(name))
        for name in names
        if name not in multiplied and constants.kind(name) in floating
    )


def _parts(name: str) -> tuple[str, ...]:
    """Names under which a weight may be stored."""
    return (name, *(f"{name}.{part}" for part in ("values", "columns", "row_starts")))


def _layers(model: onnx.ModelProto, constants: _Constants) -> Iterator[Layer]:
    """The weights that multiply, each once, in the order of the nodes."""
    nodes = list(all_nodes(model.graph))
    makers = {name: node for node in nodes for name in node.output}
    seen: set[str] = set()
    for node in nodes:
        if is_ours(node):
            found: Iterator[Layer] = _of_ours(node, constants)
        elif is_product(node):
            found = _of_onnx(node, constants, makers)
        else:
            continue
        for layer in found:
            if layer.name not in seen and len(layer.shape) > 1:
                seen.add(layer.name)
                yield layer


def _of_onnx(
    node: onnx.NodeProto, constants: _Constants, makers: dict[str, onnx.NodeProto]
) -> Iterator[Layer]:
    about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    packed = node.op_type in PACKED
    weight, place, axis = ZERO_POINTS.get(node.op_type, (-1, -1, 0))
    for index in factors(node):
        if index >= len(node.input):
            continue
        zero, along, given = None, axis, node.input[index]
        if index == weight and place < len(node.input) and node.input[place] in constants:
            zero = constants.array(node.input[place])
        name, zero, along = _stored(given, zero, along, constants, makers)
        if name not in constants or len(constants.dims(name)) < 2:
            continue
        shape = constants.dims(name)
        if packed and "K" in about:
            shape = (int(about["N"]), int(about["K"]))
        zeros = None if packed else constants.zeros(name, zero, along)
        yield Layer(name, shape, constants.kind(name), zeros, node.op_type)
        if packed:
            return


def _stored(
    name: str, zero: Array | None, axis: int, constants: _Constants,
    makers: dict[str, onnx.NodeProto],
) -> tuple[str, Array | None, int]:  # fmt: skip
    """What a value is made of, and what stands for zero in that: one value, or some on an axis."""
    for _ in range(_STEPS):
        maker = makers.get(name)
        if name in constants or maker is None or maker.op_type not in _MOVES:
            break
        if maker.op_type == "DequantizeLinear" and len(maker.input) > 2:
            given = {item.name: item.i for item in maker.attribute}
            zero = constants.array(maker.input[2]) if maker.input[2] in constants else None
            axis = given.get("axis", 1)
        name = maker.input[0]
    return name, zero, axis


_STEPS = 16
"""Operators between a constant and its product."""


def _of_ours(node: onnx.NodeProto, constants: _Constants) -> Iterator[Layer]:
    kind = operators.current_name(node.op_type)
    if kind in _DENSE:
        name = node.input[1]
        yield Layer(
            name, constants.dims(name), constants.kind(name), constants.zeros(name, None, 0), kind
        )
        return
    if kind not in (*_SPARSE, *_BLOCKS):
        return
    about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    values, _, starts = node.input[1:4]
    rows = constants.dims(starts)[0] - 1
    kernel = tuple(about.get("kernel_shape", ()))
    inputs = (
        about["features"] if "features" in about else about["channels"] // about.get("group", 1)
    )
    shape = (rows, int(inputs), *map(int, kernel))
    stored = constants.array(values)
    if kind in _BLOCKS:
        width = rows * blocks(int(inputs)) * BLOCK * math.prod(kernel)
    else:
        width = math.prod(shape)
    if min(shape) < 0 or stored.size > width:
        raise ValueError(f"{values} has {stored.size:,} values for a weight of {shape}")
    name = values.removesuffix(".values")
    yield Layer(
        name, shape, constants.kind(values),
        math.prod(shape) - int(np.count_nonzero(stored)), kind,
    )  # fmt: skip
