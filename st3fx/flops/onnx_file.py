"""Counts on an ONNX file: reads it, gives its inputs sizes, and adds up what a walk notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from st3fx.errors import FlopsError, describe
from st3fx.flops import onnx_control
from st3fx.flops.collect import Collector
from st3fx.flops.onnx_walk import Walk
from st3fx.passes.onnx.normal_form import BUILT_IN, NormalForm, bodies, normal_form, open_inputs
from st3fx.passes.onnx.plain_operators import plain_proto
from st3fx.runtime.open_model import open_model
from st3fx.runtime.operators import Shape, example_shapes

Shapes = Sequence[Shape] | Mapping[str, Shape]
"""Sizes of the inputs, in their order or by name."""


@dataclass(frozen=True)
class GraphCount:
    """What was counted on a graph.

    Attributes:
        rows: The counts.
        inputs: Sizes of the graph's inputs.
        parameters: Scalars in all initializers but integers that are no weights.
    """

    rows: Collector
    inputs: tuple[Shape, ...]
    parameters: int


def count_file(
    path: Path,
    convention: str,
    shapes: Shapes | None = None,
    batch: int | None = None,
    block: int | None = None,
) -> GraphCount:
    """Count on an ONNX file.

    Args:
        path: The file.
        convention: What counts.
        shapes: Sizes of all inputs in their order, or of some by name.
        batch: What a free size in dimension 0 becomes; 1 by default.
        block: How many consecutive inputs are counted as a block.

    Raises:
        FlopsError: When the file cannot be read, or a size cannot be known.
    """
    form = read_model(path)
    model = form.model
    types = fix_inputs(model, shapes or example_shapes(model, batch or 1) or None, batch)
    walk = Walk(form, types, onnx_control.take)
    walk.nodes(model.graph.node)
    collector = Collector(convention, block)
    for entry in walk.entries:
        entry.add(collector)
    inputs = tuple(shape for name in types if (shape := walk.types.shape(name)) is not None)
    return GraphCount(collector, inputs, walk.values.parameters(collector.layers))


def read_model(path: Path) -> NormalForm:
    """Read a file with its external data, in normal form.

    Sparse operators become those of ONNX that compute the same.

    Raises:
        FlopsError: When it is missing, no ONNX, incomplete, or has operators of its own.
    """
    model = open_model(path, FlopsError)
    if not model.opset_import:
        raise FlopsError(f"{path} is not an ONNX file, or is of no opset")
    try:
        model = plain_proto(model)  # first: what ours have as bodies is no computation
    except (KeyError, ValueError) as error:
        raise FlopsError(f"{path} has damaged sparse operators: {describe(error)}") from error
    try:
        form = normal_form(model)
    except ValueError as error:
        raise FlopsError(f"{path} is damaged: {error}") from error
    _check_operators(form.model.graph, path)
    return form


def _check_operators(graph: onnx.GraphProto, path: Path) -> None:
    for node in graph.node:
        if node.domain not in BUILT_IN:
            raise FlopsError(
                f"{path}: node {node.name or node.output[0]!r} is {node.op_type} of the domain "
                f"{node.domain}, which is not standard ONNX, so neither its shape nor its cost is "
                "known: analyze the graph as it was exported"
            )
        for body in bodies(node):
            _check_operators(body, path)


def fix_inputs(
    model: onnx.ModelProto, shapes: Shapes | None, batch: int | None
) -> dict[str, onnx.TypeProto]:
    """Types of the graph's inputs with every size known.

    Args:
        model: The model.
        shapes: Sizes of all inputs, in their order, or of some by name.
        batch: What free sizes in dimension 0 become, those named ``batch``, and others of the same
            name; 1 by default.

    Raises:
        FlopsError: When a size stays free, or one that is given contradicts the graph.
    """
    inputs = open_inputs(model.graph)
    given = _by_name(inputs, shapes)
    dims = [value.type.tensor_type.shape.dim for value in inputs if value.name not in given]
    free = {sizes[0].dim_param for sizes in dims if sizes} - {""}
    free |= {"batch"} & {dim.dim_param for sizes in dims for dim in sizes}
    return {value.name: _fixed(value, given.get(value.name), free, batch) for value in inputs}


def _by_name(inputs: Sequence[onnx.ValueInfoProto], shapes: Shapes | None) -> dict[str, Shape]:
    names = [value.name for value in inputs]
    if shapes is None:
        return {}
    if isinstance(shapes, Mapping):
        unknown = [name for name in shapes if name not in names]
        if unknown:
            raise FlopsError(f"no input {unknown[0]!r}: the graph has {', '.join(names)}")
        return {name: tuple(shape) for name, shape in shapes.items()}
    if len(shapes) != len(names):
        raise FlopsError(
            f"{len(shapes)} shapes for {len(names)} inputs: the graph has {', '.join(names)}"
        )
    return {name: tuple(shape) for name, shape in zip(names, shapes, strict=True)}


def _fixed(
    value: onnx.ValueInfoProto, given: Shape | None, free: set[str], batch: int | None
) -> onnx.TypeProto:
    if not value.type.HasField("tensor_type"):
        raise FlopsError(f"input {value.name} is no tensor: its size is not known")
    fixed = onnx.TypeProto()
    fixed.CopyFrom(value.type)
    declared = fixed.tensor_type.shape.dim
    if given is None:
        if not fixed.tensor_type.HasField("shape"):
            raise _size_missing(value)
        for index, dim in enumerate(declared):
            if _is_known(dim):
                continue
            if index and dim.dim_param not in free:
                raise _size_missing(value)
            dim.dim_value = batch or 1
        return fixed
    has_shape = fixed.tensor_type.HasField("shape")
    if has_shape and (len(declared) != len(given) or any(
        _is_known(dim) and dim.dim_value != size
        for dim, size in zip(declared, given, strict=False)
    )):  # fmt: skip
        sizes = "x".join(map(str, given))
        raise FlopsError(f"input {value.name} is {_text(value)} in the graph, not {sizes}")
    return onnx.helper.make_tensor_type_proto(fixed.tensor_type.elem_type, given)


def _is_known(dim: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a size is a number; some converters write -1 for one that is free."""
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


def _size_missing(value: onnx.ValueInfoProto) -> FlopsError:
    return FlopsError(
        f"input {value.name} is {_text(value)}: give its sizes by --input, e.g. --input 1x3x224x224"
    )


def _text(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    sizes = [str(dim.dim_value) if _is_known(dim) else dim.dim_param or "?" for dim in dims]
    return " x ".join(sizes) or "of an unknown shape"
