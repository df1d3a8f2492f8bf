"""Modules, values and attributes in forms that can be compared: what ``repeats`` takes for equal.

A file of its own, beside the one that asks it: which things are alike is said without any trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.modules.hooks import has_hooks
from st3fx.modules.same import meta_of, same_value
from st3fx.modules.state import INTERNAL
from st3fx.passes.trace.proxies import ValueProxy

CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types of values that are compared as they are."""


class UnfitError(Exception):
    """What was met is not repeated."""


def makes(
    root: nn.Module,
    names: Mapping[int, str],
    tensors: Mapping[int, str],
    within: Callable[[str], bool],
) -> dict[int, int]:
    """How modules are made: two of one number differ in values alone.

    Args:
        root: Its modules are compared.
        names: Id of a module -> its one name.
        tensors: Id of a tensor -> its one name.
        within: Whether there are sites in the module of a name.

    Returns:
        Id of a module -> its number; those that can't be repeated are not in it.
    """
    numbers: dict[Any, int] = {}
    found: dict[int, int] = {}
    for path, module in reversed(list(root.named_modules())):
        own = _make(path, module, names, tensors, found)
        if own is not None:
            found[id(module)] = numbers.setdefault((*own, within(path)), len(numbers))
    return found


def _make(
    path: str,
    module: nn.Module,
    names: Mapping[int, str],
    tensors: Mapping[int, str],
    found: Mapping[int, int],
) -> tuple[Any, ...] | None:
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule) or has_hooks(module):
        return None
    if names[id(module)] != path:
        return None
    children = []
    for key, child in module._modules.items():
        number = None if child is None else found.get(id(child))
        if child is not None and (number is None or names[id(child)] != _join(path, key)):
            return None
        children.append((key, number))
    own: list[Any] = []
    for table in (module._parameters, module._buffers):
        for key, tensor in table.items():
            if tensor is None:
                own.append((key, None))
                continue
            meta = meta_of(tensor)
            if meta is None or tensors.get(id(tensor)) != _join(path, key):
                return None
            own.append((key, (type(tensor), tensor.requires_grad, *meta)))
        own.append(("", None))
    return type(module), tuple(children), tuple(own)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def flat(value: Any, seen: dict[fx.Node, int], proxies: list[Any]) -> Any:
    """Nested values in a form to compare: nodes by number, constants with their types.

    Args:
        value: What a module is given, or gives.
        seen: Node -> its number; filled.
        proxies: Of these nodes; filled.

    Raises:
        UnfitError: If there is anything else in it.
    """
    kind = type(value)
    if kind is ValueProxy:
        node = object.__getattribute__(value, "node")
        if node not in seen:
            seen[node] = len(seen)
            proxies.append(value)
        return ("node", seen[node])
    if kind in CONSTANTS:
        return (kind, repr(value) if kind is float else value)
    if kind in (tuple, list):
        return (kind, *[flat(item, seen, proxies) for item in value])
    if kind is dict:
        pairs = value.items()
        return (kind, *[(flat(k, seen, proxies), flat(v, seen, proxies)) for k, v in pairs])
    raise UnfitError


def filled(value: Any, proxy: Callable[[fx.Node], Any]) -> Any:
    """A result that a trace gave, with nodes in place of proxies, built anew by ``proxy``."""
    kind = type(value)
    if kind is fx.Node:
        return proxy(value)
    if kind in (tuple, list):
        return kind([filled(item, proxy) for item in value])
    if kind is dict:
        return {key: filled(item, proxy) for key, item in value.items()}
    return value


def shape(value: Any) -> Any:
    """An input in a form to compare.

    Raises:
        UnfitError: If it is no tensor, number or size, nor several of these.
    """
    if isinstance(value, Tensor):
        meta = meta_of(value)
        if meta is None:
            raise UnfitError
        return (type(value), *meta)
    if type(value) in (tuple, list):
        return (type(value), *map(shape, value))
    if type(value) in (*CONSTANTS, torch.Size):
        return (type(value), value)
    raise UnfitError


def same_attributes(left: nn.Module, right: nn.Module) -> bool:
    """Whether two modules have the same plain attributes, of equal values, and the same mode."""
    mine, theirs = vars(left), vars(right)
    return mine.keys() == theirs.keys() and all(
        same_value(theirs[key], value)
        for key, value in mine.items()
        if key not in INTERNAL or key == "training"
    )


def emptied(value: Any, known: Collection[fx.Node]) -> Any:
    """A result with nodes in place of proxies.

    Raises:
        UnfitError: If it has anything but nodes of the trace, constants and plain containers.
    """
    kind = type(value)
    if kind is ValueProxy:
        node = object.__getattribute__(value, "node")
        if node not in known:
            raise UnfitError
        return node
    if kind in CONSTANTS:
        return value
    if kind in (tuple, list):
        return kind([emptied(item, known) for item in value])
    if kind is dict and all(type(key) in CONSTANTS for key in value):
        return {key: emptied(item, known) for key, item in value.items()}
    raise UnfitError
