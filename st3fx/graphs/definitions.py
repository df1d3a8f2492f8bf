"""What traced code took from classes and from the globals of files: a graph holds while it is so.

An attribute that is found on the class is none of the module's own as long as the module has not
got one of that name. Classes are shared by many modules, files by many classes: each name is
looked up once, however many modules read it.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from st3fx.modules.marks import SITES, has_site, is_ours
from st3fx.modules.same import frozen, same_value

_MISSING = object()


class Names:
    """Names in one class, or in the globals of one file, with what they mean now.

    The class is the user's: one that a conversion makes has the same attributes.
    """

    def __init__(self, owner: Any, names: Iterable[str]) -> None:
        """Look them up.

        Args:
            owner: A class, or the globals of a file.
            names: Those in it.
        """
        self._owner = owner
        self._look_up(sorted(names))

    def _look_up(self, names: list[str]) -> None:
        found = {name: self._value(name) for name in names}
        self._contents = {  # the same object may have other items
            name: frozen(value)
            for name, value in found.items()
            if isinstance(value, list | dict | set)
        }
        steady = [n for n in names if n not in self._contents and self._value(n) is found[n]]
        # A class method is another object at each look.
        self._raw = {n: _raw(self._owner, n) for n in names if n not in (*steady, *self._contents)}
        self._others = bool(self._contents or self._raw)
        self._names, self._values = steady, [found[name] for name in steady]
        get = operator.attrgetter if isinstance(self._owner, type) else operator.itemgetter
        self._all: Callable[[Any], Any] = get(*steady, *steady[:1]) if steady else _nothing

    def _value(self, name: str) -> Any:
        if isinstance(self._owner, type):
            return getattr(self._owner, name, _MISSING)
        return self._owner.get(name, _MISSING)

    def hold(self) -> bool:
        """Whether all of them still mean the same."""
        try:
            same = all(map(operator.is_, self._all(self._owner), self._values))
        except (AttributeError, KeyError):
            return False
        return (same or self.are_equal()) and (not self._others or self._hold_others())

    def are_equal(self) -> bool:
        """The same in plain Python: objects that are equal are as good."""
        pairs = [*zip(self._names, self._values, strict=True), *self._contents.items()]
        return all(same_value(self._value(name), value) for name, value in pairs)

    def _hold_others(self) -> bool:
        return all(
            same_value(self._value(name), value) for name, value in self._contents.items()
        ) and all(_raw(self._owner, name) is value for name, value in self._raw.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> Names:
        """Copies of a model share them: they are of no module."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as names; what they mean is looked up where it is loaded."""
        owner = self._owner if isinstance(self._owner, type) else self._owner.get("__name__")
        return {"owner": owner, "names": [*self._names, *self._contents, *self._raw]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        owner = state["owner"]
        if not isinstance(owner, type):  # a file that is loaded without a name has nothing to find
            owner = vars(sys.modules[owner]) if owner in sys.modules else {}
        self._owner = owner
        self._look_up(state["names"])


def _raw(owner: Any, name: str) -> Any:
    """What stands in the first class that has the name, without asking it."""
    return next((vars(kind)[name] for kind in owner.__mro__ if name in vars(kind)), _MISSING)


def _nothing(owner: Any) -> tuple[Any, ...]:
    return ()


class Definitions:
    """What one trace took from classes and globals."""

    def __init__(
        self,
        root: nn.Module | None = None,
        modules: Mapping[nn.Module, frozenset[str]] | None = None,
        names: Iterable[Names] = (),
    ) -> None:
        """Keep.

        Args:
            root: Whose forward was traced, in a model before conversion.
            modules: Module -> the names that its class answered.
            names: What they mean, and the globals.
        """
        self._root, modules = root, modules or {}
        self._modules = tuple(modules)
        self._of_class = tuple(modules.values())
        # A forward that others put on a module wraps the converted one; see Variant.
        absent = [names - {"forward"} for names in self._of_class]
        pairs = zip(self._modules, absent, strict=True)
        self._absent = [(module, names) for module, names in pairs if names]
        self._plain = tuple(map(type, self._modules))
        self._kinds: list[type] = list(self._plain)
        self._names = tuple(names)

    def of_owners(self, owners: Iterable[nn.Module]) -> Definitions:
        """The same, and the classes of modules that own sites: these give effective weights."""
        known = dict(zip(self._modules, self._of_class, strict=True))
        # Each graph module has a class of its own, which no file can name.
        plain = [owner for owner in owners if not isinstance(owner, fx.GraphModule)]
        modules = {owner: frozenset[str]() for owner in plain} | known
        return Definitions(self._root, modules, self._names)

    def hold(self) -> bool:
        """Whether everything is as it was."""
        if torch.compiler.is_compiling():  # a compiler follows plain loops, and guards by itself
            for module, absent in self._absent:
                for name in absent:
                    if name in module.__dict__:
                        return False
            return all(names.are_equal() for names in self._names)
        for module, absent in self._absent:
            if not module.__dict__.keys().isdisjoint(absent):
                return False
        kinds = [*map(type, self._modules)]
        if kinds != self._kinds:
            if not all(map(self._fits, range(len(kinds)))):
                return False
            self._kinds = kinds
        return all(names.hold() for names in self._names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the classes of a conversion, which have no place in a file to be found by."""
        return {**self.__dict__, "_kinds": list(self._plain)}

    def _fits(self, index: int) -> bool:
        """Whether a module's class has what the traced one has, but for what is ours.

        A class that others have made of ours (FSDP2, a mixin) may add to it, and to the root's
        forward, which has been asked for already.
        """
        module, plain = self._modules[index], self._plain[index]
        sites = module.__dict__.get(SITES, {}).items()
        if not all(sparse.site.computed or has_site(module, name) for name, sparse in sites):
            return False
        names = self._of_class[index] - ({"forward"} if module is self._root else set())
        return all(_theirs(type(module), name) is _theirs(plain, name) for name in names)


def _theirs(kind: type, name: str) -> Any:
    """As :func:`_raw`, past classes that a conversion makes."""
    for base in kind.__mro__:
        if name in vars(base) and not is_ours(base):
            return vars(base)[name]
    return _MISSING
