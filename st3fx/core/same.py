"""Whether a value is still the one that a trace saw."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from st3fx.core.stand_ins import Meta, meta_of

_SIMPLE = (
    bool, int, float, complex, str, bytes, set, frozenset, range, slice, enum.Enum,
    torch.dtype, torch.device, torch.layout,
)  # fmt: skip


def same_value(value: Any, expected: Any) -> bool:
    """Whether a value that a trace read is still the one that it saw.

    Numbers, strings and the like compare by value, containers item by item, a tensor with the
    metadata that were expected, all else by identity.
    """
    if type(expected) is Meta:
        return isinstance(value, Tensor) and meta_of(value) == expected
    # Containers before identity: dynamo cannot tell whether two tuples are the same object.
    if isinstance(value, list | tuple | dict):
        if type(value) is not type(expected) or len(value) != len(expected):
            return False
        if not isinstance(value, dict):
            return all(map(same_value, value, expected))
        return list(value) == list(expected) and all(
            same_value(item, expected[key]) for key, item in value.items()
        )
    if value is expected:
        return True
    return type(value) is type(expected) and is_value(value) and bool(value == expected)


def is_value(value: Any) -> bool:
    """Whether two such objects are the same when they compare equal."""
    return isinstance(value, _SIMPLE)


def frozen(value: Any, of_tensor: Callable[[Tensor], Any] = lambda tensor: tensor) -> Any:
    """A value as it is now: containers are copied, whatever is in them.

    Args:
        value: Anything.
        of_tensor: What stands for a tensor; by default the tensor itself.
    """
    if type(value) in (list, tuple):
        return type(value)(frozen(item, of_tensor) for item in value)
    if type(value) is dict:
        return {key: frozen(item, of_tensor) for key, item in value.items()}
    if isinstance(value, Tensor):
        return of_tensor(value)
    return value.copy() if type(value) is set else value
