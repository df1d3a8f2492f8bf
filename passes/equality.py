"""Equality of outputs, bit for bit, and what is said where they differ."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from st3fx.core.same import is_value


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
    """Equal for equal tensors (``torch.equal``), in 32 bytes; empty for ``None``."""
    if tensor is None:
        return b""
    # Negative zeros become positive, and all NaNs the same: they may differ in sign and payload.
    values = torch.where(tensor.isnan(), torch.nan, tensor.detach() + 0).cpu().contiguous()
    state = hashlib.sha256(f"{tuple(values.shape)}{values.dtype}".encode())
    state.update(values.flatten().view(torch.uint8).numpy().data)
    return state.digest()


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
        inside, other = _tensors_inside(left), _tensors_inside(right)
        if len(inside) != len(other) or not all(map(equal, inside, other)):
            return f" (in its {type(left).__name__})"
    return None


def _tensors_inside(thing: Any) -> list[Tensor]:
    """All tensors in an object that is no container, and in the objects that it has."""
    found: list[Tensor] = []
    opened: dict[int, Any] = {}
    pending = [thing]
    while pending:
        owner = pending.pop()
        if id(owner) in opened or not _has_state(owner):
            continue
        opened[id(owner)] = owner
        leaves = pytree.tree_leaves(list(vars(owner).values()))
        found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        pending += reversed(leaves)
    return found


def _has_state(thing: Any) -> bool:
    known = isinstance(thing, Tensor | nn.Module | type) or callable(thing) or is_value(thing)
    return not known and hasattr(thing, "__dict__")


def equal(left: Any, right: Any) -> bool:
    """``torch.equal`` with NaNs equal to each other; objects that are no values by their type."""
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return type(left) is type(right) and (not is_value(left) or bool(left == right))
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if torch.equal(left, right):
        return True
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
