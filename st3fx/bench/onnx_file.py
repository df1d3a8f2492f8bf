"""Reads what a benchmark has to know of an ONNX file: its inputs, and that it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import uses_external_data

from st3fx.errors import BenchError
from st3fx.onnx_passes.normal_form import BUILT_IN, all_nodes, open_inputs
from st3fx.onnx_passes.plain_operators import OURS


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
    if not path.is_file():
        raise BenchError(f"no file {path}" if not path.exists() else f"{path} is a folder")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError) as error:
        raise BenchError(f"{path} is not an ONNX file, or is broken") from error
    if not model.graph.node:
        raise BenchError(f"{path} is not an ONNX file, or has an empty graph")
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            _check_external(tensor, path)
    if not custom_ops:
        _check_operators(model, path)
    return tuple(_port(value) for value in open_inputs(model.graph))


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    info = {entry.key: entry.value for entry in tensor.external_data}
    file = path.parent / info["location"]
    if not file.is_file():
        raise BenchError(
            f"{path} has its weights in {file.name}, which is missing: put it beside the file"
        )
    end = int(info.get("offset", 0)) + int(info.get("length", 0))
    if file.stat().st_size < end:
        raise BenchError(
            f"{file}, with the weights of {path}, is truncated: it has {file.stat().st_size:,} "
            f"bytes, and {tensor.name} ends at {end:,}"
        )


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
