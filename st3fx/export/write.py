"""Writes an ONNX graph: one file, or two where it is too large for one; sparse on request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

ONE_FILE = 1_500_000_000
"""Bytes of weights up to which they are in the ONNX file itself; the format's limit is 2 GiB."""

_INDEX = 8
"""Bytes of one index of a sparse initializer: ONNX knows int64 alone."""


def write_model(model: ir.Model, path: Path, *, sparse: bool = False, limit: int = ONE_FILE) -> int:
    """Write a graph.

    Args:
        model: The graph.
        path: The file; weights beyond ``limit`` go into ``<path>.data`` beside it.
        sparse: Store initializers as index and value where that is smaller.
        limit: Bytes of weights that one file may hold.

    Returns:
        How many initializers are sparse.

    Raises:
        OSError: When it cannot be written.
    """
    proto = ir.to_proto(model)
    count = _make_sparse(proto.graph) if sparse else 0
    size = sum(len(item.raw_data) for item in proto.graph.initializer)
    size += sum(len(s.values.raw_data) + len(s.indices.raw_data)
                for s in proto.graph.sparse_initializer)  # fmt: skip
    onnx.save_model(
        proto,
        str(path),
        save_as_external_data=size > limit,
        location=f"{path.name}.data",
        size_threshold=1024,
    )
    return count


def _make_sparse(graph: onnx.GraphProto) -> int:
    """Replace the initializers that are smaller as sparse ones, where a node reads them."""
    outputs = {value.name for value in graph.output}
    sparse = []
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        flat = array.reshape(-1)
        # Compared by bits, so that -0.0 stays what it is.
        held = np.flatnonzero(flat.view(f"u{flat.itemsize}") if flat.dtype.kind == "f" else flat)
        smaller = held.size * (_INDEX + flat.itemsize) < flat.nbytes
        if smaller and flat.dtype.kind == "f" and array.ndim and item.name not in outputs:
            values = numpy_helper.from_array(flat[held], item.name)
            indices = numpy_helper.from_array(held.astype(np.int64), f"{item.name}_indices")
            sparse.append((item, onnx.helper.make_sparse_tensor(values, indices, array.shape)))
    for item, tensor in sparse:
        graph.initializer.remove(item)
        graph.sparse_initializer.append(tensor)
    return len(sparse)
