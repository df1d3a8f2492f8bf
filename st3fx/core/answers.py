"""What a trace was told: the answers and readings that its graph holds for."""

from __future__ import annotations

import importlib
import types
from typing import Any, NamedTuple

from st3fx.core.same import same_value


class Answer(NamedTuple):
    """What a trace was told about one value.

    Attributes:
        question: A key of :data:`st3fx.core.values.QUESTIONS`.
        expected: The answer, plain data.
        words: The value as an expression of the module's inputs, e.g. ``x.shape[0] > 4``.
        place: File and line of the code that asked.
        of_data: Whether it follows from the data of the call's tensors.
    """

    question: str
    expected: Any
    words: str
    place: str
    of_data: bool = False

    def __str__(self) -> str:
        """``x.shape[0] > 4 is False (model.py:12)``."""
        subject = {"length": f"len({self.words})", "kind": f"type({self.words})"}
        value = getattr(self.expected, "__name__", None) or repr(self.expected)
        kind = ", looked at in each call" if self.of_data else ""
        return f"{subject.get(self.question, self.words)} is {value} ({self.place}){kind}"


class Fact(NamedTuple):
    """Something outside of the call that traced code read.

    Attributes:
        owner: ``torch`` or a part of it, for a function there, or an object that a module has.
        name: The function, or the attribute.
        args: What the function was called with; ``None`` for an attribute.
        expected: What it gave.
        place: File and line of the code that read it.
    """

    owner: Any
    name: str
    args: tuple[Any, ...] | None
    expected: Any
    place: str

    def holds(self) -> bool:
        """Whether it gives the same now."""
        found = getattr(self.owner, self.name, None)
        if self.args is not None:
            found = found(*self.args)  # type: ignore[misc]
        return same_value(found, self.expected)

    def __str__(self) -> str:
        """``BertConfig.use_cache is False (model.py:12)``."""
        owner = type(self.owner).__name__
        if isinstance(self.owner, types.ModuleType):
            owner = self.owner.__name__
        call = "" if self.args is None else f"({', '.join(map(str, self.args))})"
        return f"{owner}.{self.name}{call} is {self.expected!r} ({self.place})"

    def __reduce__(self) -> Any:
        """Modules cannot be pickled: they go by their names."""
        if isinstance(self.owner, types.ModuleType):
            return _of_module, (self.owner.__name__, *self[1:])
        return Fact, tuple(self)


def _of_module(name: str, *rest: Any) -> Fact:
    return Fact(importlib.import_module(name), *rest)
