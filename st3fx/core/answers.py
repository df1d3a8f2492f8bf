"""What a trace was told: the answers and readings that its graph holds for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

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
        owner: ``torch``, for a function of it, or an object that a module has.
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
        owner = "torch" if self.owner is torch else type(self.owner).__name__
        call = "" if self.args is None else f"({', '.join(map(str, self.args))})"
        return f"{owner}.{self.name}{call} is {self.expected!r} ({self.place})"

    def __reduce__(self) -> Any:
        """Modules cannot be pickled: ``torch`` goes by its name."""
        owner = "torch" if self.owner is torch else self.owner
        return _fact, (owner, *self[1:])


def _fact(owner: Any, *rest: Any) -> Fact:
    return Fact(torch if owner == "torch" else owner, *rest)
