"""What traced code reads, on modules, objects, classes and in globals: each becomes a guard.

A module's attributes are read through ``__getattribute__``, which is watched for the time of a
trace; so are the classes of plain objects that a module has (a configuration).

A method or a default that is found on a class is known by its name. Which globals its code uses is
read off the code, with the functions of the user's files that it names in turn: what is in there
and is not run in this trace is a guard too many, which costs a graph where it changes.
"""

from __future__ import annotations

import contextlib
import contextvars
import dis
import enum
import functools
import random
import sys
import threading
import types
from collections.abc import (
    Callable,
    Container,
    Iterator,
    MutableMapping,
    MutableSequence,
    MutableSet,
)
from typing import Any

from torch import Tensor, fx, nn

from st3fx.graphs.definitions import Definitions, Names
from st3fx.graphs.graph import Guard
from st3fx.graphs.guards import Fact
from st3fx.modules import rnn
from st3fx.modules.same import frozen, is_value, meta_of
from st3fx.modules.state import INTERNAL
from st3fx.passes.trace.alike import is_of_each, slots, state
from st3fx.passes.trace.ambient import place
from st3fx.passes.trace.questions import Questions
from st3fx.whose import is_installed

_INTERNAL = INTERNAL - {"training"}

_FOREIGN = ("torch", "builtins", "numpy", "collections", "functools", "st3fx")
"""Packages whose objects are no settings of a user."""
_OF_MODULE = frozenset(dir(nn.Module))
_FEW = 64
"""Items of a container that are compared at each call; a larger one counts as the object it is."""


class Reads:
    """Reads of one trace.

    Attributes:
        guards: (object, attribute) -> the guard, for modules.
        taken: What was found on their classes, and in globals.
        before: Id of a module -> its attributes before the trace.
    """

    def __init__(
        self, root: nn.Module, questions: Questions, named: Callable[[Tensor], fx.Proxy | None]
    ) -> None:
        """Prepare; :meth:`watched` records.

        Args:
            root: Its modules are watched.
            questions: Takes what is read of other objects.
            named: Gives the proxy of one of the module's tensors.
        """
        self.guards: dict[tuple[int, str], Guard] = {}
        self.before = {id(module): dict(module.__dict__) for module in root.modules()}
        self._stored: dict[tuple[int, str], nn.Module] = {}
        self._modules, self._named = dict(root.named_modules()), named
        self._questions = questions
        self._objects: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._noted: dict[tuple[int, str], Any] = {}
        self._unwatched: dict[int, Any] = {}
        self._classes: dict[type, Any] = {}
        self.taken = Taken(self._adopt)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Record inside."""
        store = nn.Module.__setattr__
        nn.Module.__getattribute__ = self._of_module()  # type: ignore[method-assign]
        nn.Module.__setattr__ = self._noting(store)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del nn.Module.__getattribute__
            nn.Module.__setattr__ = store  # type: ignore[method-assign]
            for kind, own in self._classes.items():
                if own is None:
                    del kind.__getattribute__
                else:
                    kind.__getattribute__ = own  # type: ignore[method-assign]
            self._classes.clear()

    def restore(self) -> list[str]:
        """Undo what the code wrote into watched objects; the names of what it wrote."""
        written = []
        for thing, before in self._objects.values():
            now = vars(thing)
            changed = [
                name
                for name in {**before, **now}
                if now.get(name, _MISSING) is not before.get(name, _MISSING)
            ]
            if changed:
                now.clear()
                now.update(before)
                written += [f"{type(thing).__name__}.{name}" for name in changed]
        return written

    def _noting(self, store: Any) -> Any:
        def note(module: nn.Module, name: str, value: Any) -> None:
            if self._questions.answers and name in self.before.get(id(module), ()):
                self._stored[id(module), name] = module
            store(module, name, value)

        return note

    def guard_stored(self, given: Container[str]) -> None:
        """What is stored and not given by the graph must be what was there before."""
        names = {id(module): path for path, module in self._modules.items()}
        for (_, key), module in self._stored.items():
            path = names[id(module)]
            if (f"{path}.{key}" if path else key) not in given:
                self._guard(module, key, self.before[id(module)][key])

    def _of_module(self) -> Any:
        before = self.before

        def record(module: nn.Module, name: str) -> Any:
            if name not in _INTERNAL and id(module) in before and self._questions.answers:
                if name not in object.__getattribute__(module, "__dict__"):
                    if name == "__dict__" and not _is_foreign(
                        sys._getframe(1).f_globals.get("__name__")
                    ):
                        self._questions.log.append(("all", module, name))
                    self._note_class(module, name)
                    return object.__getattribute__(module, name)
                value = object.__getattribute__(module, name)
                if before[id(module)].get(name, _MISSING) is value:  # and not just stored
                    return self._read(module, name, value)
                return value
            return object.__getattribute__(module, name)

        return record

    def _read(self, module: nn.Module, name: str, value: Any) -> Any:
        """What the code gets for an attribute: the proxy of a tensor, anything else as it is."""
        if isinstance(value, Tensor):
            return self._named(value)
        if rnn.is_list(module, name):  # a graph reads these parameters by their names
            self._questions.log.append(("list", module, name))
        else:
            self._guard(module, name, value)
        return value

    def _guard(self, module: nn.Module, name: str, value: Any) -> None:
        self._questions.log.append(("read", module, name))
        if (id(module), name) not in self.guards:
            with self._questions.silent():
                self.guards[id(module), name] = Guard(module, name, frozen(value, meta_of))
            self._adopt(value)

    def _note_class(self, module: nn.Module, name: str) -> None:
        """An attribute that the module itself has not got, before its class is asked."""
        if name != "__class__":  # isinstance() asks for it; the class is known
            self._questions.log.append(("class", module, name))
        if hasattr(type(module), name):
            with self._questions.silent():
                if not name.startswith("__") and is_of_each(type(module), name):
                    self._questions.log.append(("each", module, name))
                self.taken.note(module, name)
                self._adopt(getattr(type(module), name))

    def repeat_read(self, module: nn.Module, name: str) -> None:
        """A module's attribute was found to be what a trace has read on another one."""
        self._questions.log.append(("read", module, name))
        if (id(module), name) not in self.guards:
            value = self.before[id(module)][name]
            self.guards[id(module), name] = Guard(module, name, frozen(value, meta_of))

    def states(self) -> list[Any]:
        """What was read of objects that are no modules, as it is now, in the order of reading."""
        noted = [vars(thing).get(name, _MISSING) for (_, name), thing in self._noted.items()]
        return [frozen(value) for value in [*noted, *map(state, self._unwatched.values())]]

    def follows(self, thing: Any) -> bool:
        """Whether :meth:`states` tells that an object has changed."""
        return id(thing) in self._objects or id(thing) in self._unwatched

    def repeat_class(self, traced: nn.Module, module: nn.Module, name: str) -> None:
        """A module of the same class has not got an attribute that a trace has asked it for."""
        self._questions.log.append(("class", module, name))
        self.taken.repeat(traced, module, name)

    def guard_code(self, module: nn.Module) -> None:
        """The code of a graph module, which its users may edit."""
        if isinstance(module, fx.GraphModule) and "_code" in vars(module):
            self.guards[id(module), "_code"] = Guard(module, "_code", vars(module)["_code"])

    def guard_tensor(self, name: str) -> None:
        """A tensor that is neither parameter nor buffer must stay one of its kind."""
        path, _, key = name.rpartition(".")
        module = self._modules[path]
        if key in self.before[id(module)]:
            self._guard(module, key, self.before[id(module)][key])

    def _adopt(self, value: Any) -> None:
        """Watch an object that holds settings, or several in a container."""
        if isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                if not isinstance(item, list | tuple | dict):
                    self._adopt(item)
            return
        kind = type(value)
        if id(value) in self._objects:
            return
        if not _holds_settings(value):
            if slots(kind) and not _is_foreign(kind.__module__):
                self._unwatched[id(value)] = value
            return
        try:
            self._watch(kind)
        except TypeError:  # a class that cannot be changed
            self._unwatched[id(value)] = value
            return
        self._objects[id(value)] = (value, dict(vars(value)))

    def _watch(self, kind: type) -> None:
        if any(base in self._classes for base in kind.__mro__):
            return
        original: Any = kind.__getattribute__
        own = kind.__dict__.get("__getattribute__")

        def record(thing: Any, name: str) -> Any:
            value = original(thing, name)
            if self._questions.answers and not name.startswith("__") and id(thing) in self._objects:
                self._note(thing, name, value)
            return value

        kind.__getattribute__ = record  # type: ignore[method-assign,assignment]
        self._classes[kind] = own

    def _note(self, thing: Any, name: str, value: Any) -> None:
        facts = self._questions.facts
        self._noted.setdefault((id(thing), name), thing)
        if (id(thing), name) not in facts and _is_data(value):
            facts[id(thing), name] = Fact(thing, name, None, frozen(value), place())
        else:
            self._adopt(value)


_MISSING = object()


def _is_data(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    return value is None or is_value(value)


def _holds_settings(value: Any) -> bool:
    if isinstance(value, nn.Module | Tensor | fx.Proxy | type | enum.Enum | types.FunctionType):
        return False
    package = type(value).__module__.partition(".")[0]
    return package not in _FOREIGN and hasattr(value, "__dict__")


class Taken:
    """The names that one trace took from classes and from globals.

    Attributes:
        changes: Whether code that it follows may change what it takes.
    """

    def __init__(self, adopt: Callable[[Any], None]) -> None:
        """Begin without any.

        Args:
            adopt: Watches an object that a global is.
        """
        self._adopt = adopt
        self._modules: dict[nn.Module, set[str]] = {}
        self._names: dict[int, tuple[Any, set[str]]] = {}
        self._codes: set[types.CodeType] = set()
        self._plain: list[tuple[Any, str]] = []
        self.changes = False

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
                self._note_counters(kind, vars(base)[name])

    def _note_counters(self, kind: type, value: Any) -> None:
        """The plain values of a class that its code names: it may read them of the class."""
        for function in _functions(value):
            names = set(_names_in(function.__code__))
            for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
                for name in sorted(names & vars(base).keys()):
                    if _is_plain(vars(base)[name]) and (base, name) not in self._plain:
                        self._plain.append((base, name))

    def repeat(self, traced: nn.Module, module: nn.Module, name: str) -> None:
        """As :meth:`note`, of a module whose class has answered for another one."""
        if name in self._modules.get(traced, ()):
            self._modules.setdefault(module, set()).add(name)

    def plain_values(self) -> list[Any]:
        """The plain values among all that was taken, as they are now, in the order of taking."""
        return [frozen(_value_of(owner, name)) for owner, name in self._plain]

    def definitions(self, root: nn.Module) -> Definitions:
        """All names, with what they mean now.

        Args:
            root: Whose forward was traced.
        """
        modules = {module: frozenset(names) for module, names in self._modules.items()}
        return Definitions(root, modules, [Names(*pair) for pair in self._names.values()])

    def _name(self, owner: Any, name: str) -> None:
        names = self._names.setdefault(id(owner), (owner, set()))[1]
        if name in names:
            return
        names.add(name)
        value = _value_of(owner, name)
        if _is_plain(value):
            self._plain.append((owner, name))
            self.changes |= isinstance(value, dict) and any(type(key) is not str for key in value)

    def _follow(self, value: Any) -> None:
        """The globals that code uses."""
        for function in _functions(value):
            code = function.__code__
            if code not in self._codes and not _is_foreign(function.__module__):
                self._codes.add(code)
                self.changes |= _assigns(code) or _has_state(function)
                names = frozenset(_names_in(code))
                for name in names & function.__globals__.keys():
                    self._take(function.__globals__, name, names)

    def _take(self, space: dict[str, Any], name: str, names: frozenset[str]) -> None:
        value = space[name]
        if _is_plain(value):
            self._name(space, name)
        elif isinstance(value, nn.Module | Tensor) or _is_foreign(_home(value)):
            if type(value) in (dict, list, set):
                self._plain.append((space, name))
            else:
                self.changes |= isinstance(value, _CHANGING)
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


def _value_of(owner: Any, name: str) -> Any:
    return getattr(owner, name, None) if isinstance(owner, type) else owner.get(name)


_CHANGING = (
    Iterator, MutableMapping, MutableSequence, MutableSet, contextvars.ContextVar, threading.local,
    random.Random,
)  # fmt: skip
"""Globals of such kinds may have changed since the last look."""


def _has_state(function: types.FunctionType) -> bool:
    """Whether a function of a user keeps values, or reads past what is watched."""
    if is_installed(function.__code__.co_filename):
        return False
    cells = [_content(cell) for cell in function.__closure__ or ()]
    kept = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if vars(function) or "__getattribute__" in function.__code__.co_names:
        return True
    return any(isinstance(x, (*_CHANGING, list)) for x in kept)


@functools.lru_cache(maxsize=1024)
def _assigns(code: types.CodeType) -> bool:
    """Whether code, or a function inside of it, assigns a global or a variable around it."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return True
        if step.opname == "STORE_DEREF" and step.argval in code.co_freevars:
            return True
    return any(_assigns(c) for c in code.co_consts if isinstance(c, types.CodeType))


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
    return package in _FOREIGN or package in sys.stdlib_module_names - {"__main__"}


def _is_plain(value: Any) -> bool:
    """Whether a value is data that can be compared at each call."""
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return len(value) <= _FEW and all(map(_is_plain, items))
    return value is None or is_value(value)
