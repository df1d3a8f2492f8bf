"""Reads what a benchmark has to know of an ONNX file, and makes values for its inputs.

That is: its inputs and their sizes, whether it is whole, and whether it has sparse kernels, or a
model could have some here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from st3fx import runtime
from st3fx.bench.variant import Array, BenchSettings
from st3fx.errors import BenchError, NativeError
from st3fx.passes.onnx.normal_form import BUILT_IN, all_nodes, open_inputs
from st3fx.passes.onnx.plain_operators import OURS, is_ours
from st3fx.runtime.open_model import open_model
from st3fx.runtime.operators import QUANT_OPERATORS, Shape, example_shapes


@dataclass(frozen=True)
class InputPort:
    """An input of a graph: a size that is free is its name, or ``?`` without one."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]


def read_inputs(path: Path, *, custom_ops: bool = False) -> tuple[InputPort, ...]:
    """The inputs of a file, in order, after a look at whether it can be run.

    Args:
        path: The file.
        custom_ops: Whether a library with operators will be registered.

    Raises:
        BenchError: When it is missing, no ONNX, incomplete, or has operators of its own.
    """
    model = open_model(path, BenchError, weights=False, compared=True)
    if not custom_ops:
        _check_operators(model, path)
    return tuple(_port(value) for value in open_inputs(model.graph))


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    known = {*BUILT_IN, *OURS, *(function.domain for function in model.functions)}
    for node in all_nodes(model.graph):
        if node.domain not in known:
            raise BenchError(
                f"{path}: node {node.name or node.output[0]!r} is {node.op_type} of the domain "
                f"{node.domain}, which ONNX Runtime does not have: give the library of its "
                "operators by --custom-ops"
            )


def _port(value: onnx.ValueInfoProto) -> InputPort:
    if not value.type.HasField("tensor_type"):
        raise BenchError(f"input {value.name} is no tensor: a benchmark cannot make values for it")
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind not in "biufc" or dtype.name == "bfloat16":
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise BenchError(f"input {value.name} is of type {name}: a benchmark cannot make values")
    if not kind.HasField("shape"):
        raise BenchError(f"input {value.name} has no shape in the graph: export it with one")
    # Some converters write -1 for a size that is free.
    sizes = (dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0
             else dim.dim_param or "?" for dim in kind.shape.dim)  # fmt: skip
    return InputPort(value.name, dtype, tuple(sizes))


LARGEST = 1 << 26
"""Numbers of an input that is made because a file alone says so."""

BATCH = "batch"
"""What exports of ours call the batch, whichever dimension it is."""


def default_batch(ports: Sequence[InputPort], shapes: Sequence[Shape] = ()) -> int:
    """Samples in a call where no batch size is asked for: those of the shapes, else 1.

    Args:
        ports: Inputs of the graph.
        shapes: Of all inputs, or none.
    """
    places = [_batch_axis(port) for port in ports]
    for place, shape in zip(places, shapes, strict=False):
        if place is not None and place < len(shape):
            return shape[place]
    if any(place is not None for place in places) and not shapes:
        return 1
    sizes = [shape[0] for shape in (*shapes, *(port.shape for port in ports)) if shape]
    return next((size for size in sizes[:1] if isinstance(size, int)), 1)


def _batch_axis(port: InputPort) -> int | None:
    """The free dimension that is the batch: that of this name, else the first; ``None``: none."""
    if BATCH in port.shape:
        return port.shape.index(BATCH)
    return 0 if port.shape and isinstance(port.shape[0], str) else None


def sized(
    ports: Sequence[InputPort], batch: int, shapes: Sequence[Shape] = (), where: str = "the graph"
) -> tuple[Shape, ...]:
    """The size of every input.

    Args:
        ports: Inputs of the graph.
        batch: What free sizes in dimension 0 become, or those named ``batch`` where an input has
            such, and others of the same name.
        shapes: Of all inputs in order; empty: as the graph has them.
        where: Name of the graph, for errors.

    Raises:
        BenchError: When a size stays free, contradicts the graph, or no input takes ``batch``.
    """
    if shapes and len(shapes) != len(ports):
        names = ", ".join(port.name for port in ports)
        raise BenchError(
            f"{len(shapes)} shapes for {len(ports)} inputs of {where} ({names}): give --input once "
            "for each, in this order"
        )
    places = [_batch_axis(port) for port in ports]
    free = {port.shape[a] for port, a in zip(ports, places, strict=True) if a is not None}
    result = []
    for index, port in enumerate(ports):
        given = shapes[index] if shapes else None
        if given is not None:
            _check_given(port, given)
        result.append(tuple(
            size if isinstance(size, int)
            else batch if axis == places[index] or (size in free and size != "?")
            else _asked(port, axis, given)
            for axis, size in enumerate(port.shape)
        ))  # fmt: skip
        if given is None and math.prod(result[-1]) > LARGEST:
            raise BenchError(
                f"input {port.name} of {where} has {math.prod(result[-1]):,} numbers: give its "
                "size by --input if that is meant"
            )
    if not free and result and result[0] and result[0][0] != batch:
        raise BenchError(
            f"{where} is made for batch {result[0][0]}, not {batch}: measure it at that size, or "
            "export the model with a free batch"
        )
    return tuple(result)


def values(ports: Sequence[InputPort], shapes: Sequence[Shape], seed: int) -> list[Array]:
    """Standard normal values for floats; 0 and 1 for integers and booleans, which are valid as
    indices without knowing the model.
    """  # noqa: D205
    generator = np.random.default_rng(seed)
    return [
        _values(port.dtype, shape, generator) for port, shape in zip(ports, shapes, strict=True)
    ]


def check_same(named: Sequence[tuple[str, Sequence[Shape]]]) -> None:
    """Refuse models that were made for other sizes than the first: their times say nothing.

    The order of dimensions is free (channels may come last), and one model may have more inputs
    than the other.

    Args:
        named: Name of each model, and the shapes of its inputs.

    Raises:
        BenchError: Which of them it is, and what to do.
    """
    first, *others = named
    wanted = _sizes(first[1])
    for name, shapes in others:
        found = _sizes(shapes)
        if not (found <= wanted or wanted <= found):
            raise BenchError(
                f"{first[0]} is called with {_all(first[1])}, but {name} with {_all(shapes)}: "
                "their times do not compare; give all of them one size by --input (-i) where a "
                "file leaves it free, export them for one size, or measure each on its own"
            )


def _sizes(shapes: Sequence[Shape]) -> Counter[Shape]:
    return Counter(tuple(sorted(shape)) for shape in shapes)


def _all(shapes: Sequence[Shape]) -> str:
    return ", ".join("x".join(map(str, shape)) or "a scalar" for shape in shapes)


def _values(dtype: np.dtype[np.generic], shape: Shape, generator: np.random.Generator) -> Array:
    try:
        # Of no dimension, a generator gives a number of Python's.
        if dtype.kind in "fc":
            made = generator.standard_normal(
                shape, np.float64 if dtype.itemsize > 4 else np.float32
            )
            return np.asarray(made).astype(dtype, copy=False)
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    except MemoryError as error:
        raise BenchError(f"an input of shape {shape} does not fit into memory") from error


def _check_given(port: InputPort, given: Shape) -> None:
    same = len(given) == len(port.shape) and all(
        isinstance(size, str) or size == wanted or axis == 0
        for axis, (size, wanted) in enumerate(zip(port.shape, given, strict=False))
    )
    if not same:
        hint = "; for a number of calls, give --iterations" if len(given) == 1 else ""
        raise BenchError(
            f"input {port.name} is {_text(port)} in the graph, not {'x'.join(map(str, given))}"
            f"{hint}"
        )


def _asked(port: InputPort, axis: int, given: Shape | None) -> int:
    if given is not None:
        return given[axis]
    size = port.shape[axis]
    name = f"axis {size!r}" if size != "?" else "an axis"
    example = "x".join(str(s) if isinstance(s, int) else "1" if i == 0 else "N"
                       for i, s in enumerate(port.shape))  # fmt: skip
    raise BenchError(
        f"{name} (dimension {axis}) of input {port.name}, {_text(port)}, has no size: give the "
        f"input's by --input, as {example} with a number for each N"
    )


def _text(port: InputPort) -> str:
    return " x ".join(map(str, port.shape)) or "a scalar"


def missing(settings: BenchSettings) -> str:
    """Why models have no row with sparse kernels; empty where they have one, or want none."""
    if not settings.sparse_kernels:
        return ""
    if settings.providers[0] != "CPUExecutionProvider":
        return "they run on the CPU alone"
    try:
        runtime.library()
    except NativeError as error:
        return str(error)
    return ""


def is_wanted(settings: BenchSettings) -> bool:
    """Whether a model with zeros gets a row with sparse kernels."""
    return settings.sparse_kernels and not missing(settings)


def verdict(without: Sequence[str], settings: BenchSettings) -> Iterator[str]:
    """Why models with zeros have no row with sparse kernels.

    Args:
        without: Names of those that have none.
        settings: Of the benchmark.
    """
    if without and settings.sparse_kernels:
        reason = missing(settings) or "no layer is expected to gain"
        yield f"No sparse kernels, which skip zeros, for {', '.join(without)}: {reason}."


_QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "ConvInteger", "MatMulInteger", *QUANT_OPERATORS,
)  # fmt: skip
"""Of which a quantized file has one at least."""


def is_quantized(path: Path) -> bool:
    """Whether products of a file are of 8-bit integers."""
    nodes = open_model(path, BenchError, weights=False).graph.node
    return any(node.op_type in _QUANTIZED for node in nodes)


def has_sparse_operators(path: Path) -> bool:
    """Whether a file has operators of ours."""
    nodes = open_model(path, BenchError, weights=False).graph.node
    return any(is_ours(node) for node in nodes)


def noted_shapes(path: Path) -> tuple[Shape, ...]:
    """The sizes of the example, where a file whose image sizes are free notes them."""
    noted = example_shapes(open_model(path, BenchError, weights=False))
    return noted if all(0 < math.prod(shape) <= LARGEST for shape in noted) else ()
