"""Writes an ONNX graph: one file, or two where it is too large for one; sparse on request.

Of the shapes between its nodes those are written that something reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data, uses_external_data

from st3fx.files.ours import WRITER
from st3fx.passes.onnx.normal_form import all_nodes
from st3fx.passes.onnx.sparse_kernels.hints import add_hints
from st3fx.runtime.inference import DOMAIN
from st3fx.runtime.onnx_seal import sealed
from st3fx.version import VERSION
from st3fx.whose import USER_MODULE


def keep_needed_shapes(graph: onnx.GraphProto) -> None:
    """Leave out the entries of ``value_info`` that nothing needs, in place.

    ONNX Runtime infers shapes, but for those of our operators, and lets one of them overwrite its
    operand only where both shapes are known. Counting needs sizes of what branches and loops give,
    and in them. All others go: that of a weight which is stored as sparse contradicts ONNX's type
    inference, and one with a free batch contradicts the size that a runtime was given for it.
    """
    wanted, branches = set(_near_ours(graph)), set()
    for node in graph.node:
        inner = [item for about in node.attribute for item in (about.g, *about.graphs) if item.node]
        if inner:
            branches |= set(node.output)
        for item in inner:
            _keep(item, [value for value in item.value_info if _is_fixed(value)])
    _keep(graph, [
        value for value in graph.value_info
        if value.name in wanted or (value.name in branches and _is_fixed(value))
    ])  # fmt: skip


def _keep(graph: onnx.GraphProto, values: list[onnx.ValueInfoProto]) -> None:
    del graph.value_info[:]
    graph.value_info.extend(values)


def _near_ours(graph: onnx.GraphProto) -> Iterator[str]:
    """What our operators read and give, but for constants."""
    constants = {item.name for item in graph.initializer}
    for node in graph.node:
        if node.domain == DOMAIN:
            yield from node.output
            yield from (name for name in node.input if name not in constants)


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    """Whether all sizes are numbers."""
    return all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)


ONE_FILE = 1_500_000_000
"""Bytes of weights up to which they are in the ONNX file itself; the format's limit is 2 GiB."""

_LITTLE = 1024
"""Bytes up to which a weight is in the ONNX file in any case."""

_INDEX = 8
"""Bytes of one index of a sparse initializer: ONNX knows int64 alone."""


def write_model(
    model: ir.Model, path: Path, *, sparse: bool = False, limit: int | None = None
) -> int:
    """Write a graph.

    Args:
        model: The graph.
        path: The file; weights beyond ``limit`` go into ``<path>.data`` beside it.
        sparse: Store initializers as index and value where that is smaller.
        limit: Bytes of weights that one file may hold; ``None`` for :data:`ONE_FILE`.

    Returns:
        How many initializers are sparse.

    Raises:
        OSError: When it cannot be written.
    """
    proto = ir.to_proto(model)
    count = _make_sparse(proto.graph) if sparse else 0
    keep_needed_shapes(proto.graph)
    add_hints(proto)
    save_proto(proto, path, limit=limit)
    return count


def save_proto(proto: onnx.ModelProto, path: Path, *, limit: int | None = None) -> None:
    """Write a model with its weights; what was written there before is replaced, both files of it.

    ``onnx.save_model`` adds to a file of weights that is there, and refuses where the working
    directory, whichever folder is meant, has one of that name.

    Args:
        proto: The model; it loses the weights that go into the second file.
        path: The file; weights beyond ``limit`` go into ``<path>.data`` beside it.
        limit: Bytes of weights that one file may hold; ``None`` for :data:`ONE_FILE`.

    Raises:
        OSError: When it cannot be written.
    """
    _forget_places(proto)
    data = data_path(path)
    data.unlink(missing_ok=True)
    beside = _size(proto.graph) > (ONE_FILE if limit is None else limit)
    if beside:
        with data.open("wb") as file:
            for tensor in _initializers(proto.graph):
                if len(tensor.raw_data) < _LITTLE:
                    continue
                offset = file.tell()
                file.write(tensor.raw_data)
                set_external_data(tensor, data.name, offset, len(tensor.raw_data))
                tensor.ClearField("raw_data")
    proto.producer_name, proto.producer_version = WRITER, VERSION
    with path.open("wb") as file:
        file.writelines(sealed(proto, data if beside else None))


_PLACE = re.compile(f"{USER_MODULE}[0-9a-f]{{12}}_")


def _forget_places(proto: onnx.ModelProto) -> None:
    """Name the modules of users' files as their files are, so that no folder changes a file.

    torch's exporter notes at each node which classes it comes from.
    """
    for node in (*all_nodes(proto.graph), *(n for f in proto.functions for n in f.node)):
        for item in node.metadata_props:
            if USER_MODULE in item.value:
                item.value = _PLACE.sub("", item.value)


def data_path(path: Path) -> Path:
    """Where the weights of a large model lie: ``model.onnx.data`` beside ``model.onnx``."""
    return path.with_name(f"{path.name}.data")


def weights_beside(path: Path) -> tuple[Path, ...]:
    """``<path>.data``, where the ONNX file that is there has its weights in it; else nothing."""
    data = data_path(path)
    if not path.is_file() or not data.is_file():
        return ()
    try:
        graph = onnx.load(path, format="protobuf", load_external_data=False).graph
    except Exception:  # noqa: BLE001 (whatever else it is, that file is not ours)
        return ()
    used = {
        entry.value
        for tensor in _initializers(graph) if uses_external_data(tensor)
        for entry in tensor.external_data if entry.key == "location"
    }  # fmt: skip
    return (data,) if data.name in used else ()


def _size(graph: onnx.GraphProto) -> int:
    """The bytes that weights take."""
    sparse = (part for s in graph.sparse_initializer for part in (s.values, s.indices))
    return sum(len(item.raw_data) for item in (*_initializers(graph), *sparse))


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a graph and of all graphs in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


def _make_sparse(graph: onnx.GraphProto) -> int:
    """Replace the initializers that are smaller as sparse ones, where a node reads them.

    A zero of either sign is left out, and is +0.0 in the model that a reader makes of it.
    """
    outputs = {value.name for value in graph.output}
    sparse = []
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        if array.dtype.kind != "f" or not array.ndim or item.name in outputs:
            continue
        flat = array.reshape(-1)
        held = np.flatnonzero(flat)
        if held.size * (_INDEX + flat.itemsize) < flat.nbytes:
            values = numpy_helper.from_array(flat[held], item.name)
            indices = numpy_helper.from_array(held.astype(np.int64), f"{item.name}_indices")
            sparse.append((item, onnx.helper.make_sparse_tensor(values, indices, array.shape)))
    for item, tensor in sparse:
        graph.initializer.remove(item)
        graph.sparse_initializer.append(tensor)
    return len(sparse)
