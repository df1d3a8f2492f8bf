"""What traced code takes from classes and from globals: names that its graph is guarded by.

A method or a default that is found on a class is known by its name. Which globals its code uses is
read off the code, with the functions of the user's files that it names in turn: what is in there
and is not run in this trace is a guard too many, which costs a graph where it changes.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from st3fx.graphs.definitions import Definitions, Names
from st3fx.modules.same import is_value
from st3fx.whose import is_installed

FOREIGN = ("torch", "builtins", "numpy", "collections", "functools", "st3fx")
"""Packages whose objects are no settings of a user."""
_OF_MODULE = frozenset(dir(nn.Module))
_FEW = 64
"""Items of a container that are compared at each call; a larger one counts as the object it is."""


class Taken:
    """Names of one trace."""

    def __init__(self, adopt: Callable[[Any], None]) -> None:
        """None yet.

        Args:
            adopt: Watches an object that a global is.
        """
        self._adopt = adopt
        self._modules: dict[nn.Module, set[str]] = {}
        self._names: dict[int, tuple[Any, set[str]]] = {}
        self._codes: set[types.CodeType] = set()

    def note(self, module: nn.Module, name: str) -> None:
        """A module's class answered for a name."""
        kind = type(module)
        if name in _OF_MODULE and getattr(kind, name) is getattr(nn.Module, name, None):
            return
        # A graph module has a class of its own, whose code is in an attribute (Reads.guard_code).
        if name.startswith("__") or issubclass(kind, fx.GraphModule):
            return
        names = self._modules.setdefault(module, set())
        if name in names:
            return
        names.add(name)
        for base in kind.__mro__:
            if base is kind or (name in vars(base) and base is not nn.Module):
                self._name(base, name)
            if name in vars(base) and base is not nn.Module:
                self._follow(vars(base)[name])

    def definitions(self, root: nn.Module) -> Definitions:
        """All names, with what they mean now.

        Args:
            root: Whose forward was traced.
        """
        modules = {module: frozenset(names) for module, names in self._modules.items()}
        return Definitions(root, modules, [Names(*pair) for pair in self._names.values()])

    def _name(self, owner: Any, name: str) -> None:
        self._names.setdefault(id(owner), (owner, set()))[1].add(name)

    def _follow(self, value: Any) -> None:
        """The globals that code uses."""
        for function in _functions(value):
            code = function.__code__
            if code not in self._codes and not _is_foreign(function.__module__):
                self._codes.add(code)
                names = frozenset(_names_in(code))
                for name in names & function.__globals__.keys():
                    self._take(function.__globals__, name, names)

    def _take(self, space: dict[str, Any], name: str, names: frozenset[str]) -> None:
        value = space[name]
        if _is_plain(value):
            self._name(space, name)
        elif isinstance(value, nn.Module | Tensor) or _is_foreign(_home(value)):
            return
        elif isinstance(value, types.ModuleType):
            if id(vars(value)) not in self._names:
                for other in names & vars(value).keys():
                    if not isinstance(vars(value)[other], types.ModuleType):
                        self._take(vars(value), other, names)
        else:
            self._name(space, name)
            if isinstance(value, type):
                self._settings_of(value, names)
            else:
                self._adopt(value)
                functions = _functions(value)
                if not all(is_installed(f.__code__.co_filename) for f in functions):
                    self._follow(value)

    def _settings_of(self, kind: type, names: frozenset[str]) -> None:
        """A class may be a place for settings, which nobody makes an object of."""
        for name in names & vars(kind).keys():
            if _is_plain(vars(kind)[name]):
                self._name(kind, name)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """Those that run when a value is called or looked up, as far as they are Python."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, staticmethod | classmethod | types.MethodType):
            pending.append(item.__func__)
        elif isinstance(item, property):
            pending.append(item.fget)
        elif isinstance(item, functools.partial | functools.partialmethod):
            pending.append(item.func)
        elif isinstance(item, types.FunctionType):
            yield item
            cells = [_content(cell) for cell in item.__closure__ or ()]
            pending += [cell for cell in cells if callable(cell)]
        elif isinstance(item, functools._lru_cache_wrapper):
            pending.append(item.__wrapped__)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@functools.lru_cache(maxsize=1024)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """The names that code looks up, with the functions inside of it."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return (*code.co_names, *(name for other in inner for name in _names_in(other)))


def _home(value: Any) -> str:
    """Where a value, or its class, was defined."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    home = getattr(value, "__module__", None)
    return home if isinstance(home, str) else type(value).__module__


def _is_foreign(module: str | None) -> bool:
    package = (module or "").partition(".")[0]
    return package in FOREIGN or package in sys.stdlib_module_names - {"__main__"}


def _is_plain(value: Any) -> bool:
    """Whether a value is data that can be compared at each call."""
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return len(value) <= _FEW and all(map(_is_plain, items))
    return value is None or is_value(value)
