"""Outputs that are more than tuples, lists and dicts: how a node builds them again."""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from st3fx.core.graphs import find_class, ordered_dict, rebuild
from st3fx.errors import TraceError

Recipe = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function and its arguments, which make the object."""


def record_fields(value: Any) -> Recipe | None:
    """How to make an ``OrderedDict`` or an instance of a dataclass; ``None`` for all else.

    Raises:
        TraceError: If a dataclass holds more than its fields, or cannot be found by name.
    """
    if type(value) is collections.OrderedDict:
        return ordered_dict, ([[key, item] for key, item in value.items()],), {}
    kind = type(value)
    if not dataclasses.is_dataclass(kind):
        return None
    fields = dataclasses.fields(value)
    names = {field.name for field in fields}
    extra = set(vars(value)) - names if hasattr(value, "__dict__") else set()
    if isinstance(value, dict):
        extra |= value.keys() - names
    if extra or not all(field.init for field in fields):
        raise TraceError(f"makes a {kind.__name__} that is more than its fields")
    if not _can_be_found(kind):
        raise TraceError(f"makes a {kind.__name__}, a class that no import finds")
    return kind, (), {field.name: getattr(value, field.name) for field in fields}


def object_state(value: Any) -> Recipe | None:
    """How to make an object again that a forward has filled, as a cache of keys and values.

    Only for what a forward returns: what is called with such an object may change it.
    """
    kind = type(value)
    if isinstance(value, Tensor | nn.Module | fx.Proxy | type) or not hasattr(value, "__dict__"):
        return None
    if kind.__module__ == "builtins" or not _holds_proxies(value) or not _can_be_found(kind):
        return None
    return rebuild, (kind, vars(value)), {}


def class_reference(kind: type) -> Recipe:
    """How to find a class again."""
    return find_class, (kind.__module__, kind.__qualname__), {}


def _holds_proxies(value: Any, depth: int = 4) -> bool:
    leaves = pytree.tree_leaves(list(vars(value).values()))
    return any(
        isinstance(leaf, fx.Proxy)
        or (depth > 0 and hasattr(leaf, "__dict__") and _holds_proxies(leaf, depth - 1))
        for leaf in leaves
        if not isinstance(leaf, Tensor | nn.Module | type)
    )


def _can_be_found(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind
