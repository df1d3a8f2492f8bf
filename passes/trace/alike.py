"""Modules, values and attributes in forms that can be compared: what ``repeats`` takes for equal.

A file of its own, beside the one that asks it: which things are alike is said without any trace.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.modules.hooks import has_hooks
from st3fx.modules.same import Meta, meta_of, same_value
from st3fx.modules.state import INTERNAL
from st3fx.passes.trace.proxies import ValueProxy
from st3fx.whose import is_installed

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


_EXACT = (type(None), bool, int, str, bytes, range, torch.dtype, torch.device, torch.layout)
_BY_WORDS = (float, complex, slice)
"""``-0.0`` equals ``0.0`` and is another number."""


def equal(value: Any, expected: Any) -> bool:
    """Whether two values are the same in all that code can see; finer than ``same_value``."""
    kind = type(expected)
    if kind is Meta:
        return same_value(value, expected)
    if type(value) is not kind:
        return False
    if kind in (list, tuple) or hasattr(kind, "_fields"):
        return len(value) == len(expected) and all(map(equal, value, expected))
    if kind is dict:
        return equal([*value], [*expected]) and equal([*value.values()], [*expected.values()])
    if kind in (set, frozenset):
        return value == expected and sorted(map(repr, value)) == sorted(map(repr, expected))
    if kind in _BY_WORDS:
        return repr(value) == repr(expected)
    return value is expected or (kind in _EXACT and bool(value == expected))


def is_steady(value: Any, follows: Callable[[Any], bool]) -> bool:
    """Whether nothing that a comparison does not see can change in a value between two calls.

    Args:
        value: Of an attribute of a module.
        follows: Whether an object is compared by its own attributes.
    """
    kind = type(value)
    if kind in (*_EXACT, *_BY_WORDS, set, frozenset):
        return True
    if isinstance(value, enum.Enum | type | nn.Module | Tensor | types.BuiltinFunctionType):
        return True
    if kind in (list, tuple) or hasattr(kind, "_fields"):
        return all(is_steady(item, follows) for item in value)
    if kind is dict:
        return all(is_steady(item, follows) for item in value.values())
    if kind is functools.partial:
        parts = (value.func, *value.args, *value.keywords.values())
        return all(is_steady(part, follows) for part in parts)
    if kind is types.FunctionType:
        return is_installed(value.__code__.co_filename) or _keeps_nothing(value)
    return follows(value)


def _keeps_nothing(function: types.FunctionType) -> bool:
    """Whether a function has no values but those that it is given."""
    if function.__closure__ or function.__defaults__ or function.__kwdefaults__ or vars(function):
        return False
    kinds = (types.ModuleType, type, types.BuiltinFunctionType, int, float, str)
    found = [function.__globals__.get(name) for name in function.__code__.co_names]
    inner = any(isinstance(const, types.CodeType) for const in function.__code__.co_consts)
    return not inner and all(value is None or isinstance(value, kinds) for value in found)


def is_of_each(kind: type, name: str) -> bool:
    """Whether what a class has by a name keeps a value for each module, where no read shows it."""
    found = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    found = found.fget if isinstance(found, property) else found
    plain = (types.FunctionType, staticmethod, classmethod, functools.cached_property, type)
    return hasattr(type(found), "__get__") and not isinstance(found, plain)


def slots(kind: type) -> list[str]:
    """The names of what its objects keep outside of a dict."""
    found = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for one in found for name in ([one] if isinstance(one, str) else one)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def state(thing: Any) -> dict[str, Any]:
    """All that an object keeps, by name."""
    kept = {name: getattr(thing, name, None) for name in slots(type(thing))}
    return kept | dict(getattr(thing, "__dict__", {}))


def containers(value: Any) -> list[int]:
    """The ids of the lists and dicts in a value, each as often as it is met."""
    if type(value) not in (list, tuple, dict):
        return []
    items = value.values() if type(value) is dict else value
    own = [] if type(value) is tuple else [id(value)]
    return own + [found for item in items for found in containers(item)]


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
