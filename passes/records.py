"""Outputs that are more than tuples, lists and dicts: how a node builds them again."""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from st3fx.core.graphs import ordered_dict
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


def _can_be_found(kind: type) -> bool:
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind
