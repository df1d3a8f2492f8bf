"""Checks that an ONNX file has the zeros of the folded model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from st3fx.errors import ExportError
from st3fx.export.export_result import Zeros
from st3fx.passes.onnx.normal_form import dense

Array = npt.NDArray[Any]


def used(model: ir.Model, parameters: Iterable[str]) -> set[str]:
    """The parameters that the graph reads, of those named; a training-only head is not among them.

    Args:
        model: As the exporter gave it.
        parameters: Names.
    """
    initializers = model.graph.initializers
    return {name for name in parameters if name in initializers and initializers[name].uses()}


def check_zeros(
    path: Path,
    model: nn.Module,
    expected: Iterable[str],
    biases: set[str],
    renamed: Mapping[str, str] | None = None,
) -> Zeros:
    """Compare the written initializers with the folded weights.

    Args:
        path: The ONNX file.
        model: The folded model.
        expected: Names of the parameters that must be there.
        biases: Names of those whose values batch norm changed.
        renamed: Name of a parameter -> that of its initializer, where it has another.

    Raises:
        ExportError: Where a parameter is missing or has another number of zeros.
    """
    stored = initializers(onnx.load(str(path)))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = elements = zeros = 0
    empty = []
    for name in sorted(set(expected) - biases):
        weight = parameters[name].detach().cpu()
        count = weight.numel() - int(torch.count_nonzero(weight))
        found = stored.get((renamed or {}).get(name, name))
        if found is None and weight.dim() == 1 and count == weight.numel():
            continue  # a bias of zeros is left out
        if found is None:
            found = _twin(weight, parameters, stored)
        if found is None:
            raise ExportError(f"{name} {tuple(weight.shape)} is not in the ONNX file as it was")
        there = found.size - np.count_nonzero(found)
        if tuple(found.shape) != tuple(weight.shape) or there != count:
            raise ExportError(
                f"{name} {tuple(weight.shape)} has {count:,} zeros, but {there:,} in the ONNX file"
            )
        tensors += 1
        if weight.dim() > 1:
            elements, zeros = elements + weight.numel(), zeros + count
            if count == weight.numel():
                empty.append(name)
    return Zeros(tensors, elements, zeros, tuple(empty))


def initializers(proto: onnx.ModelProto) -> dict[str, Array]:
    """All initializers, sparse ones made dense; name -> array."""
    found = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    found |= {item.values.name: dense(item) for item in proto.graph.sparse_initializer}
    return found


def _twin(
    weight: Tensor, parameters: Mapping[str, Tensor], stored: Mapping[str, Array]
) -> Array | None:
    """What stands for a weight too: the optimiser stores equal tensors once.

    Another parameter was its equal before batch norm scaled both.
    """
    for name, other in parameters.items():
        if name in stored and other.shape == weight.shape and torch.equal(other.cpu(), weight):
            return stored[name]
    values = weight.float().numpy() if weight.dtype == torch.bfloat16 else weight.numpy()
    same = (a for a in stored.values() if a.shape == values.shape and np.array_equal(a, values))
    return next(same, None)
