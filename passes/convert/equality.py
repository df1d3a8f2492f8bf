"""Equality of outputs, bit for bit, and what is said where they differ."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from st3fx.modules.same import is_value, tensors_inside
from st3fx.tensors import kind_of, parts


class Difference(NamedTuple):
    """Where a converted model differs from its original.

    Attributes:
        what: In words.
        site: The site whose gradient alone differs, if that is it.
    """

    what: str
    site: str | None = None


class MismatchError(Exception):
    """Carries a :class:`Difference` out of a comparison."""

    def __init__(self, what: str, site: str | None = None) -> None:
        super().__init__(what)
        self.difference = Difference(what, site)


@contextlib.contextmanager
def converted(what: str) -> Iterator[None]:
    """What the original could do and the converted model cannot is a mismatch."""
    try:
        yield
    except Exception as error:
        raise MismatchError(f"{what} ({type(error).__name__} in the converted model)") from error


def require_equal(expected: Any, actual: Any, what: str) -> None:
    """Raise where two outputs differ.

    Raises:
        MismatchError: With ``what``, and where in it.
    """
    difference = first_difference(expected, actual)
    if difference is not None:
        raise MismatchError(f"{what}{difference}")


def detached(output: Any) -> Any:
    """An output without its autograd graph."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach(), output)


def digest(tensor: Tensor | None) -> bytes:
    """Equal for equal tensors (:func:`equal`), in 32 bytes; empty for ``None``."""
    if tensor is None:
        return b""
    state = hashlib.sha256(str(kind_of(tensor)).encode())
    for part in parts(tensor):
        # Negative zeros become positive, all NaNs the same: they may differ in sign and payload.
        values = torch.where(part.isnan(), torch.nan, part + 0) if _is_real(part) else part
        state.update(str(tuple(values.shape)).encode())
        state.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.digest()


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def first_difference(expected: Any, actual: Any) -> str | None:
    """Where two outputs differ, to be put after what they are; ``None`` if they are equal.

    Also in tensors inside of objects, as in a cache of keys and values.
    """
    wanted, spec = pytree.tree_flatten(expected)
    given, actual_spec = pytree.tree_flatten(actual)
    if spec != actual_spec:
        return " (its structure)"
    for index, (left, right) in enumerate(zip(wanted, given, strict=True)):
        if not equal(left, right):
            return f" (leaf {index})" if len(wanted) > 1 else ""
        inside, other = tensors_inside(left), tensors_inside(right)
        if len(inside) != len(other) or not all(map(equal, inside, other)):
            return f" (in its {type(left).__name__})"
    return None


def equal(left: Any, right: Any) -> bool:
    """``torch.equal`` with NaNs equal to each other; objects that are no values by their type."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (not is_value(left) or bool(left == right))
    if kind_of(left) != kind_of(right):
        return False
    inside, other = parts(left), parts(right)
    return len(inside) == len(other) and all(map(_equal_values, inside, other))


def _equal_values(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    if torch.equal(left, right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
