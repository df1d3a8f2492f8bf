"""What in a copy of a model still means the model that it was copied from.

A deep copy takes functions and weak references as they are. One that has a part of the model in a
variable, a default, a list, or behind another function computes with that part in the copy, too.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from st3fx.modules.marks import is_state
from st3fx.modules.state import INTERNAL

_MOST = 10_000
"""Objects that are looked at for one attribute."""
_FEW = 64
"""Items of a global container that is looked into."""
_MANY: Any = list | tuple | set | frozenset | weakref.WeakSet | weakref.WeakKeyDictionary


class Stranger(NamedTuple):
    """A function or reference of a copy that has a part of the original.

    Attributes:
        what: Where it lies, and its code.
        part: Full name of the module or tensor in the original.
        is_hook: Whether it is a hook.
    """

    what: str
    part: str
    is_hook: bool

    @property
    def message(self) -> str:
        """What to say of it, without what to do."""
        return f"{self.what} has a part of the given model in a variable, and means it in the copy"


def strangers(twin: nn.Module, model: nn.Module) -> list[Stranger]:
    """All of them.

    Args:
        twin: The copy.
        model: What it was copied from.
    """
    parts = {
        id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]
    }
    parts |= {id(module): name for name, module in model.named_modules()}
    found: dict[str, Stranger] = {}
    for name, key, value in _values(twin):
        part, code = _part_in(value, parts)
        if part is None:
            continue
        owner = name or type(model).__name__
        place = f" ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})" if code else ""
        what = f"{repr(key) if key else 'the hook'} of {owner}{place}"
        found.setdefault(what, Stranger(what, part, not key))
    return list(found.values())


def _values(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """What may be a function or have one in it: owner, attribute (empty for a hook), value."""
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if key.endswith("_hooks") and isinstance(value, dict):
                yield from ((name, "", hook) for hook in value.values())
            elif key not in INTERNAL and not is_state(key):
                yield name, key, value
    for name, parameter in model.named_parameters():
        for key in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            yield from ((name, "", hook) for hook in (getattr(parameter, key, None) or {}).values())


def _part_in(value: Any, parts: dict[int, str]) -> tuple[str | None, types.CodeType | None]:
    """The first part that a value leads to, and the code that leads there."""
    pending: list[tuple[Any, types.CodeType | None]] = [(value, None)]
    seen: set[int] = set()
    kept = []  # so that no id is used twice
    while pending and len(seen) < _MOST:
        item, code = pending.pop()
        if id(item) in parts:
            return parts[id(item)], code
        if id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        if isinstance(item, types.FunctionType):
            code = item.__code__
        pending += [(inner, code) for inner in _inside(item, parts)]
    return None, None


def _inside(item: Any, parts: dict[int, str]) -> list[Any]:
    """What an object leads to."""
    for kind, look in _LOOK:
        if isinstance(item, kind):
            return look(item)
    if isinstance(item, types.FunctionType):
        return _of_function(item, parts)
    if isinstance(item, nn.Module):  # another model, which may have parts of this one
        return [module for module in item.modules() if id(module) in parts]
    if getattr(item, "is_sparse_forward", False):
        return [item.replaced]
    return [*getattr(item, "__dict__", {}).values()]


_LOOK: tuple[tuple[Any, Callable[[Any], list[Any]]], ...] = (
    (types.MethodType, lambda item: [item.__func__, item.__self__]),
    (types.BuiltinMethodType, lambda item: [item.__self__]),
    (functools.partial, lambda i: [i.func, *i.args, *i.keywords.values(), *vars(i).values()]),
    (dict | weakref.WeakValueDictionary, lambda item: [*item.values()]),
    (_MANY, lambda item: [*item]),
    (weakref.ref, lambda item: [item()]),
    (functools._lru_cache_wrapper, lambda item: [item.__wrapped__]),
    (Tensor | type | types.ModuleType | fx.Graph | fx.Node, lambda _: []),
)


def _of_function(function: types.FunctionType, parts: dict[int, str]) -> list[Any]:
    if (function.__module__ or "").startswith("torch.ao."):  # observers ask for a device, no more
        return []
    found = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += vars(function).values()
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    space = function.__globals__
    used = [space[name] for name in function.__code__.co_names if name in space]
    return found + [value for value in used if id(value) in parts or _may_lead(value, space)]


def _may_lead(value: Any, space: dict[str, Any]) -> bool:
    """Whether a global is looked into: what is not of other files, and no large container."""
    if isinstance(value, types.FunctionType):
        return value.__globals__ is space
    if isinstance(value, _MANY | dict):
        return len(value) <= _FEW
    return isinstance(value, types.MethodType | functools.partial | weakref.ref)
