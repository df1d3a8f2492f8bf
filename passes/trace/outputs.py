"""What a graph gives back: a forward's output, and what it sets in its modules' attributes.

A graph's own outputs are tuples, lists and dicts of values. Objects of other classes (an
``OrderedDict``, a dataclass, a cache of keys and values) are built again by a node.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from st3fx.errors import TraceError
from st3fx.graphs.graph import find_class, ordered_dict, rebuild
from st3fx.modules.same import is_value
from st3fx.modules.state import Attributes

Recipe = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function and its arguments, which make the object."""


def record_fields(value: Any) -> Recipe | None:
    """Say how to make an ``OrderedDict`` or an instance of a dataclass; ``None`` for all else.

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
    """Say how to make an object again that a forward has filled, as a cache of keys and values.

    Only for what a forward returns: what is called with such an object may change it.
    """
    kind = type(value)
    if isinstance(value, Tensor | nn.Module | fx.Proxy | type) or not hasattr(value, "__dict__"):
        return None
    if kind.__module__ == "builtins" or not _holds_proxies(value) or not _can_be_found(kind):
        return None
    return rebuild, (kind, vars(value)), {}


def class_reference(kind: type) -> Recipe:
    """Say how to find a class again."""
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


class Stores:
    """Attributes of all modules of one traced module."""

    def __init__(self, root: nn.Module) -> None:
        """Keep them as they are before the trace."""
        self._root = root
        self._attributes = Attributes(root)
        self._stored: dict[str, Any] = {}

    def undo(self, below: str) -> None:
        """Set back what was stored below a module, whose trace has failed."""
        self._attributes.restore(below=below)

    def changed(self, name: str) -> bool:
        """Whether an attribute of one module is another than before."""
        return self._attributes.changed(name)

    def take_back(self) -> None:
        """Set everything back, and remember what was stored."""
        self._stored = {name: self._own(name) for name in self._attributes.changes()}
        self._attributes.restore()

    def given(self, written: list[str]) -> dict[str, Any]:
        """What the graph has to give: attribute -> proxies, in containers or not.

        Args:
            written: Attributes of other objects that the forward has set.

        Raises:
            TraceError: If something is stored that a graph cannot give.
        """
        stored = {
            name: value
            for name, value in self._stored.items()
            if not isinstance(value, torch.ScriptMethod)  # looked up for the first time
        }
        others = [name for name, value in stored.items() if not _is_made(value, self._own(name))]
        if others or written:
            raise TraceError(f"stores {', '.join([*others, *written][:3])} while it runs")
        return stored

    def _own(self, name: str) -> Any:
        """What lies in a plain attribute, ``None`` if there is none."""
        path, _, key = name.rpartition(".")
        return self._root.get_submodule(path).__dict__.get(key)


def _is_made(stored: Any, before: Any) -> bool:
    """Whether a forward has computed what it stores: a tensor, a size, or a new container."""
    leaves = pytree.tree_leaves(stored)
    made = [isinstance(leaf, fx.Proxy) for leaf in leaves]
    plain = all(m or leaf is None or is_value(leaf) for m, leaf in zip(made, leaves, strict=True))
    return stored is not before and any(made) and plain


def tensor_names(root: nn.Module) -> dict[int, str]:
    """The names of all tensors on the modules of ``root``: parameters and buffers come first."""
    names = {id(tensor): path for path, tensor in [*root.named_buffers(), *root.named_parameters()]}
    for path, module in root.named_modules():
        for key, value in module.__dict__.items():
            if isinstance(value, Tensor):
                names.setdefault(id(value), f"{path}.{key}" if path else key)
    return names
