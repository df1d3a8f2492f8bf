"""How far two arrays are from each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st3fx.errors import ExportError

Array = npt.NDArray[Any]


def difference(wanted: Array, given: Array) -> tuple[float, float]:
    """Largest absolute difference, and that over the largest magnitude in ``wanted``.

    Infinite where shapes, types, or the places of NaN and infinities differ.
    """
    if wanted.shape != given.shape or wanted.dtype != given.dtype:
        return np.inf, np.inf
    if not wanted.size:
        return 0.0, 0.0
    left, right = wanted.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return np.inf, np.inf
    if not np.isfinite(right[finite]).all():
        return np.inf, np.inf
    if not finite.any():
        return 0.0, 0.0
    absolute = float(np.abs(left[finite] - right[finite]).max())
    scale = float(np.abs(left[finite]).max())
    if not absolute:
        return 0.0, 0.0
    # A wrong integer is wrong, however large the others are.
    exact = wanted.dtype.kind in "iub"
    return absolute, np.inf if exact or not scale else absolute / scale


def as_array(tensor: Tensor) -> Array:
    """The values of a tensor, as ONNX Runtime takes them.

    Raises:
        ExportError: For a type that it does not take from Python.
    """
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        raise ExportError(
            "ONNX Runtime takes and gives no bfloat16 in Python: let the forward take and return "
            "float32, or leave the comparison out by --no-verify"
        )
    array: Array = (
        torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    ).numpy()
    return array
