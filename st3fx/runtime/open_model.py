"""Opens an ONNX file: the one way, whoever wrote it and whatever it says of itself.

Libraries take an ONNX file at its word: they make room for the sizes that it names, follow its
paths, inline its functions, and some end the process. So what a file says is held against what it
has before any of them sees it: names, types and sizes of tensors against their bytes, paths of
weights against the folder, the values of nodes against each other, and what a small file would
become, by functions in functions or constants that are computed, against a limit.

What is merely unusual passes: nodes in any order, operators that are not known, sizes that are
free. Protobuf itself refuses more than a hundred messages in each other.
"""

from __future__ import annotations

import graphlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from st3fx.errors import St3fxError, describe
from st3fx.files.reading import DamageError, Format, check_regular
from st3fx.runtime import onnx_seal as seal
from st3fx.runtime.operators import QUANT_LINEAR, QUANT_OPERATORS

ONE_FILE = 1 << 31
"""Bytes of a protobuf."""

NODES = 1 << 19
"""Nodes of a file, with what its functions become."""

SCALARS = 1 << 27
"""Scalars of a constant that a node makes of sizes alone, or of a sparse one by its shape."""

INPUT = 1 << 28
"""Scalars of an input."""

WINDOW = 1 << 20
"""Largest stride, dilation, pad or kernel size."""

_NAMES = {number: name for name, number in TensorProto.DataType.items()}
"""Types of tensors: number -> name."""

_BITS = {
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT2", "INT2"), 2),
}
"""Types of less than a byte."""

_WINDOWS = {"strides": 1, "dilations": 1, "kernel_shape": 1, "group": 1, "pads": 0}
"""Attributes of convolutions and pools -> their smallest value."""

_OF_WINDOWS = frozenset(
    ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "MaxPool", "AveragePool",
     "LpPool", "MaxUnpool", "NhwcConv", "FusedConv", "SparseConv", "DepthwiseConv")
)  # fmt: skip

_OURS = "st3fx"
"""What the domains of our operators begin with."""

_ATTRIBUTES: dict[int, frozenset[str]] = {
    AttributeProto.INT: frozenset(
        ("features", "group", "ceil_mode", "count_include_pad", "zero_point", "x_zero_point",
         "y_zero_point", "s_zero_point", "sum_minimum", "sum_maximum")),
    AttributeProto.INTS: frozenset(("kernel_shape", "strides", "dilations", "pads", "sources")),
    AttributeProto.FLOAT: frozenset(
        ("factor", "a_factor", "b_factor", "sum_factor", "residual_factor", "offset", "scale",
         "x_scale")),
    AttributeProto.STRING: frozenset(
        ("activation", "side", "stands_for", "layout", "input_layout", "output_layout")),
}  # fmt: skip
"""Types of the attributes of our operators, but for those that are of two."""

_GROWS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators that make a large value of a small one -> the input that says how large."""


def open_model(
    path: Path, error: type[St3fxError], *, weights: bool = True, compared: bool = False
) -> onnx.ModelProto:
    """Read an ONNX file that is whole and means what it says.

    Args:
        path: The file.
        error: What is raised for one that does not.
        weights: Whether those in other files are read too; they are looked at either way.
        compared: Whether the digest of those in another file is checked where they are not read.

    Raises:
        St3fxError: Of the class ``error``: when it is missing, no ONNX, incomplete, or damaged.
    """
    file = Format(error, "export it again, or mend what wrote it", limit=ONE_FILE)
    if not path.is_file() and (not path.exists() or path.is_dir()):
        raise error(f"no file {path}" if not path.exists() else f"{path} is a folder")
    try:
        return _read(path, weights=weights, compared=compared)
    except DecodeError as caught:
        raise error(f"{path} is not an ONNX file, or is broken") from caught
    except UnicodeDecodeError as caught:
        file.fail(path, DamageError(f"a text in it is none ({describe(caught)})"))
    except (OSError, DamageError) as caught:
        file.fail(path, caught)
    except (onnx.checker.ValidationError, RecursionError, ValueError) as caught:
        file.fail(path, DamageError(describe(caught)))


def _read(path: Path, *, weights: bool, compared: bool) -> onnx.ModelProto:
    check_regular(path)
    if path.stat().st_size >= ONE_FILE:
        raise DamageError("has 2 GiB or more, which no protobuf has: put its weights beside it")
    content = path.read_bytes()
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(seal.is_whole, content)
        try:
            model = onnx.load_model_from_string(content)
        finally:
            if not whole.result():
                raise DamageError("was damaged or edited after it was written")
    if not model.graph.node:
        raise DamageError("is not an ONNX file, or has an empty graph")
    check_model(model, path.parent)
    if weights or compared:
        data = path.with_name(f"{path.name}.data")
        if not seal.has_data(content, model, data):
            raise DamageError(f"{data.name} was damaged or edited after it was written")
    if weights:
        load_external_data_for_model(model, str(path.parent))
    seal.unseal(model)
    return model


def check_model(model: onnx.ModelProto, folder: Path) -> None:
    """Fail for a model that does not mean what it says.

    Args:
        model: As it was read.
        folder: Where its file lies.

    Raises:
        DamageError: What is wrong, and where.
        OSError: When a file of weights cannot be looked at.
    """
    if not 0 <= model.ir_version < 10_000:
        raise DamageError(f"has the version {model.ir_version}")
    opsets = _opsets(model.opset_import)
    _check_functions(model)
    for value in model.graph.input:
        _check_size(value)
    known = _check_graph(model.graph, opsets, folder, {}, ())
    lost = [value.name for value in model.graph.output if value.name not in known]
    if lost:
        raise DamageError(f"nothing makes the output {lost[0][:80]!r}")
    for function in model.functions:
        inner = _opsets(function.opset_import) or opsets
        made = _check_nodes(function.node, function.input, inner, folder, {}, function.name)
        if not made.union(function.input).issuperset(function.output):
            raise DamageError(f"nothing makes an output of the function {function.name[:80]!r}")


def _opsets(given: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Domain -> version."""
    opsets: dict[str, int] = {}
    for item in given:
        domain = "" if item.domain == "ai.onnx" else item.domain
        if not 0 < item.version < 10_000 or domain in opsets:
            raise DamageError(f"has opset {item.version} of {domain or 'ai.onnx'!r}")
        opsets[domain] = item.version
    return opsets


def _check_functions(model: onnx.ModelProto) -> None:
    """Fail where functions call each other in a circle, or become too many nodes."""
    functions = {(item.domain, item.name): item for item in model.functions}
    if len(functions) < len({(f.domain, f.name, f.overload) for f in model.functions}):
        raise DamageError("two functions have one name")
    calls = {
        key: [(node.domain, node.op_type) for node in _nested(function.node)]
        for key, function in functions.items()
    }
    needs = {key: {call for call in made if call in functions} for key, made in calls.items()}
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        raise DamageError("its functions call each other in a circle") from error
    sizes: dict[tuple[str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(call, 1) for call in calls[key])
    count = sum(sizes.get((node.domain, node.op_type), 1) for node in _nested(model.graph.node))
    if count > NODES:
        raise DamageError(f"has more than {NODES:,} nodes")


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs in them."""
    for node in nodes:
        yield node
        for graph in _bodies(node):
            yield from _nested(graph.node)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _check_size(value: onnx.ValueInfoProto) -> None:
    """Fail for an input that no memory holds."""
    _check_type(value)
    if value.type.HasField("tensor_type") and not value.type.tensor_type.elem_type:
        raise DamageError(f"the input {value.name!r} is of no type")
    dims = value.type.tensor_type.shape.dim
    count = math.prod(dim.dim_value for dim in dims if dim.dim_value > 0)
    if count > INPUT:
        raise DamageError(f"the input {value.name!r} has {count:.2g} scalars")


def _check_type(value: onnx.ValueInfoProto) -> None:
    _check_name(value.name)
    kind = value.type.tensor_type
    if value.type.HasField("tensor_type") and kind.elem_type not in _NAMES:
        raise DamageError(f"{value.name!r} is of type {kind.elem_type}, which ONNX does not have")
    for dim in kind.shape.dim:
        _check_name(dim.dim_param)


def _check_name(name: str) -> None:
    if not name.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise DamageError(f"has the name {name[:40]!r}, in which a letter is none")


def _check_graph(
    graph: onnx.GraphProto,
    opsets: dict[str, int],
    folder: Path,
    outer: dict[str, TensorProto],
    around: Collection[str],
) -> set[str]:
    """Check a graph and those in it; the values that it has.

    Args:
        graph: It.
        opsets: Domain -> version.
        folder: Where its file lies.
        outer: The constants of the graphs around it.
        around: All values of these.
    """
    constants = dict(outer)
    names: set[str] = set()
    for tensor in graph.initializer:
        _check_tensor(tensor, folder)
        if tensor.name in names:
            raise DamageError(f"two weights have the name {tensor.name!r}")
        names.add(tensor.name)
        constants[tensor.name] = tensor
    for sparse in graph.sparse_initializer:
        _check_sparse(sparse, folder)
        if sparse.values.name in names:
            raise DamageError(f"two weights have the name {sparse.values.name!r}")
        names.add(sparse.values.name)
    inputs = [value.name for value in graph.input]
    if len(set(inputs)) < len(inputs):
        raise DamageError("two inputs have one name")
    for value in (*graph.input, *graph.output, *graph.value_info):
        _check_type(value)
    known = names.union(inputs)
    made = _check_nodes(graph.node, known, opsets, folder, constants, graph.name, around)
    return known | made


def _check_nodes(
    nodes: Sequence[onnx.NodeProto],
    known: Iterable[str],
    opsets: dict[str, int],
    folder: Path,
    constants: dict[str, TensorProto],
    where: str,
    around: Collection[str] = (),
) -> set[str]:
    """Check nodes one by one, and that each value has one maker; the values that they make."""
    given, maker = set(known), dict[str, int]()
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in maker or name in given:
                raise DamageError(f"two nodes give the value {name!r}")
            maker[name] = index
    there = given.union(maker, around)
    for node in nodes:
        lost = next((name for name in node.input if name and name not in there), None)
        if lost is not None:
            raise DamageError(f"nothing makes {lost[:80]!r}, which {_label(node)} reads")
        _check_node(node, opsets, folder, constants, there)
    needs = [{maker[name] for name in node.input if name in maker} for node in nodes]
    if any(index <= max(need, default=-1) for index, need in enumerate(needs)):
        try:
            graphlib.TopologicalSorter(dict(enumerate(needs))).prepare()
        except graphlib.CycleError as error:
            text = f"nodes of {where[:40]!r} depend on each other in a circle"
            raise DamageError(text) from error
    return set(maker)


def _label(node: onnx.NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"the node {name[:80]!r} ({node.op_type[:40]})"


def _check_node(
    node: onnx.NodeProto,
    opsets: dict[str, int],
    folder: Path,
    constants: dict[str, TensorProto],
    there: Collection[str],
) -> None:
    for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
        _check_name(name)
    if not any(node.output):
        raise DamageError(f"a node {node.op_type[:40]} has no output")
    schema = _schema(node, opsets)
    if schema is not None:
        _check_arity(node, schema)
    seen: set[str] = set()
    for attribute in node.attribute:
        if attribute.name in seen:
            raise DamageError(f"{_label(node)} has {attribute.name[:40]!r} twice")
        seen.add(attribute.name)
        _check_attribute(node, attribute, schema)
        _check_values(attribute, opsets, folder, constants, there)
    if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
        constants[node.output[0]] = node.attribute[0].t
    _check_growth(node, constants)


def _schema(node: onnx.NodeProto, opsets: dict[str, int]) -> onnx.defs.OpSchema | None:
    """What ONNX says of an operator, if it is one of ONNX's."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _known(node.op_type, opsets.get(domain, 0), domain)


@lru_cache(maxsize=1000)
def _known(kind: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _check_arity(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Fail for a node with too few or too many inputs or outputs."""
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise DamageError(f"{_label(node)} has {len(node.input)} inputs")
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise DamageError(f"{_label(node)} has {len(node.output)} outputs")
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    pairs = zip(schema.inputs, node.input, strict=False)
    if not all(name for parameter, name in pairs if parameter.option == single):
        raise DamageError(f"{_label(node)} lacks an input")


_TYPES = frozenset(AttributeProto.AttributeType.values())

_FIELDS = {
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
}


def _types_of(
    node: onnx.NodeProto, name: str, schema: onnx.defs.OpSchema | None
) -> Collection[int]:
    """The types that an attribute may be of; none where they are not known."""
    if schema is not None:
        known: Any = schema.attributes.get(name)
        return () if known is None else (int(known.type),)
    if not node.domain.startswith(_OURS):
        return ()
    if name == "channels":
        return (AttributeProto.INT, AttributeProto.INTS)
    if name in ("minimum", "maximum"):
        is_byte = node.op_type in QUANT_OPERATORS and node.op_type != QUANT_LINEAR
        return (AttributeProto.INT if is_byte else AttributeProto.FLOAT,)
    kind = next((kind for kind, names in _ATTRIBUTES.items() if name in names), None)
    return () if kind is None else (kind,)


def _check_attribute(
    node: onnx.NodeProto, attribute: AttributeProto, schema: onnx.defs.OpSchema | None
) -> None:
    name = attribute.name
    _check_name(name)
    if attribute.type not in _TYPES or (not attribute.type and not attribute.ref_attr_name):
        raise DamageError(f"{name[:40]!r} of {_label(node)} is of no type")
    field = _FIELDS.get(attribute.type)
    if field is not None and not attribute.HasField(field) and not attribute.ref_attr_name:
        raise DamageError(f"{name[:40]!r} of {_label(node)} is empty")
    types = _types_of(node, name, schema)
    if types and attribute.type not in types and not attribute.ref_attr_name:
        known = AttributeProto.AttributeType.Name
        wanted = " or ".join(known(kind) for kind in types)
        raise DamageError(
            f"{name[:40]!r} of {_label(node)} is of type {known(attribute.type)}, not {wanted}"
        )
    if types and attribute.type in (AttributeProto.STRING, AttributeProto.STRINGS):
        for text in (attribute.s, *attribute.strings):
            text.decode()
    # In a function's body an attribute may be the call's, and has no value of its own.
    if node.op_type in _OF_WINDOWS and name in _WINDOWS and not attribute.ref_attr_name:
        numbers = attribute.ints or [attribute.i]
        if not all(_WINDOWS[name] <= number <= WINDOW for number in numbers):
            raise DamageError(f"{_label(node)} has {name} {list(numbers)[:8]}")


def _check_values(
    attribute: AttributeProto,
    opsets: dict[str, int],
    folder: Path,
    constants: dict[str, TensorProto],
    there: Collection[str],
) -> None:
    """Check the tensors and graphs of an attribute."""
    for tensor in ([attribute.t] if attribute.HasField("t") else []) + list(attribute.tensors):
        _check_tensor(tensor, folder)
    if attribute.HasField("sparse_tensor"):
        _check_sparse(attribute.sparse_tensor, folder)
    for sparse in attribute.sparse_tensors:
        _check_sparse(sparse, folder)
    for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
        _check_graph(graph, opsets, folder, constants, there)


def _check_growth(node: onnx.NodeProto, constants: dict[str, TensorProto]) -> None:
    """Fail for a constant that is made of a few numbers and would fill the memory."""
    if node.op_type == "Range":
        start, limit, delta = (_numbers(name, constants) for name in node.input[:3])
        if start is None or limit is None or delta is None or not delta.any():
            return
        count = float((limit.max() - start.min()) / delta.flat[0])
    elif node.op_type in _GROWS:
        sizes = _numbers(node.input[_GROWS[node.op_type]], constants)
        if sizes is None:
            return
        count = math.prod(int(size) for size in sizes.reshape(-1) if size > 0)
        if node.op_type == "Tile" and node.input[0] in constants:
            count *= math.prod(constants[node.input[0]].dims)
    else:
        return
    if count > SCALARS:
        raise DamageError(f"{_label(node)} makes {count:.2g} scalars")


def _numbers(name: str, constants: dict[str, TensorProto]) -> npt.NDArray[Any] | None:
    """A small constant that is in the file itself."""
    tensor = constants.get(name)
    if tensor is None or uses_external_data(tensor) or not 0 < math.prod(tensor.dims) <= 64:
        return None
    if tensor.data_type in (TensorProto.STRING, TensorProto.BOOL):
        return None
    return numpy_helper.to_array(tensor)


def _check_tensor(tensor: TensorProto, folder: Path) -> None:
    """Fail for a tensor whose type, sizes and data do not fit each other."""
    _check_name(tensor.name)
    kind = _NAMES.get(tensor.data_type, "UNDEFINED")
    label = f"the tensor {tensor.name[:80]!r}"
    if kind == "UNDEFINED" or tensor.HasField("segment"):
        raise DamageError(f"{label} is of type {tensor.data_type}, which ONNX does not have")
    if any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        raise DamageError(f"{label} has sizes {list(tensor.dims)[:8]}")
    count = math.prod(tensor.dims)
    if kind == "STRING":
        if len(tensor.string_data) != count:
            raise DamageError(f"{label} has {len(tensor.string_data)} of {count} texts")
        return
    bits = _BITS.get(kind) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    wanted = -(-count * bits // 8)
    if uses_external_data(tensor):
        _check_external(tensor, wanted, folder)
        return
    if tensor.data_location != TensorProto.DEFAULT:
        raise DamageError(f"{label} has its data nowhere")
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != wanted:
            raise DamageError(f"{label} has {len(tensor.raw_data):,} of {wanted:,} bytes")
        return
    found = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    allowed = {2 * count} if kind.startswith("COMPLEX") else {count, -(-count * bits // 8)}
    if found not in (allowed if bits < 8 or kind.startswith("COMPLEX") else {count}):
        raise DamageError(f"{label} has {found:,} numbers for sizes {list(tensor.dims)[:8]}")


def _check_external(tensor: TensorProto, wanted: int, folder: Path) -> None:
    """Fail for weights in another file that is not beside it or too short."""
    label = f"the tensor {tensor.name[:80]!r}"
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    _check_name(location)
    file = folder / location
    inside = file.resolve().is_relative_to(folder.resolve())
    if not location or Path(location).is_absolute() or not inside:
        raise DamageError(f"{label} has its data in {location[:80]!r}, which is not in its folder")
    if not file.exists():
        raise DamageError(f"has its weights in {location}, which is not beside it")
    check_regular(file)
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", wanted))
    except ValueError as error:
        raise DamageError(f"{label} has its data at no place") from error
    if offset < 0 or length != wanted:
        raise DamageError(f"{label} has {length:,} of {wanted:,} bytes")
    size = file.stat().st_size
    if size < offset + length:
        raise DamageError(
            f"{location}, with its weights, is truncated: it has {size:,} bytes, and "
            f"{tensor.name[:80]} ends at {offset + length:,}"
        )


def _check_sparse(sparse: onnx.SparseTensorProto, folder: Path) -> None:
    """Fail for a sparse tensor whose values, places and sizes do not fit each other."""
    values, places = sparse.values, sparse.indices
    for tensor in (values, places):
        _check_tensor(tensor, folder)
    label = f"the sparse tensor {values.name[:80]!r}"
    held = math.prod(values.dims)
    if any(size < 0 for size in sparse.dims) or len(values.dims) > 1:
        raise DamageError(f"{label} has sizes {list(sparse.dims)[:8]}")
    count, rank = math.prod(sparse.dims), len(sparse.dims)
    if count > max(SCALARS, held << 10) or held > count:
        raise DamageError(f"{label} has {count:.2g} scalars, of which it stores {held:,}")
    if places.data_type != TensorProto.INT64 or list(places.dims) not in ([held], [held, rank]):
        raise DamageError(f"{label} has places of sizes {list(places.dims)[:8]}")
    if uses_external_data(places) or not held:
        return
    array = numpy_helper.to_array(places)
    limits = count if array.ndim == 1 else list(sparse.dims)
    if (array < 0).any() or (array >= limits).any():
        raise DamageError(f"{label} has a place that is not in it")
