"""Equality of outputs, bit for bit."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from st3fx.core.calls import is_value


def detached(output: Any) -> Any:
    """An output without its autograd graph."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach(), output)


def digest(tensor: Tensor | None) -> bytes:
    """Equal for equal tensors (``torch.equal``), in 32 bytes; empty for ``None``."""
    if tensor is None:
        return b""
    # Negative zeros become positive, and all NaNs the same: they may differ in sign and payload.
    values = torch.where(tensor.isnan(), torch.nan, tensor.detach() + 0).cpu().contiguous()
    state = hashlib.sha256(f"{tuple(values.shape)}{values.dtype}".encode())
    state.update(values.flatten().view(torch.uint8).numpy().data)
    return state.digest()


def first_difference(expected: Any, actual: Any) -> str | None:
    """Where two outputs differ, to be put after what they are; ``None`` if they are equal."""
    wanted, spec = pytree.tree_flatten(expected)
    given, actual_spec = pytree.tree_flatten(actual)
    if spec != actual_spec:
        return " (its structure)"
    for index, (left, right) in enumerate(zip(wanted, given, strict=True)):
        if not equal(left, right):
            return f" (leaf {index})" if len(wanted) > 1 else ""
    return None


def equal(left: Any, right: Any) -> bool:
    """``torch.equal`` with NaNs equal to each other; objects that are no values by their type."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (not is_value(left) or bool(left == right))
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if torch.equal(left, right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
