"""How far a stage is that takes long: told to whoever listens, and to nobody else.

A stage that knows how many parts it has calls :func:`begin` with their number, and :func:`advance`
after each. Without a listener both are a look at one variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[float], None]
"""Is given the share that is done, from 0 to 1."""


class _Count:
    """Of one stage after the other."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.total, self.done = listener, 0, 0


_COUNT: ContextVar[_Count | None] = ContextVar("_COUNT", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` how far stages are that run inside, in this thread."""
    token = _COUNT.set(_Count(listener))
    try:
        yield
    finally:
        _COUNT.reset(token)


def begin(parts: int) -> None:
    """A stage begins that has so many parts."""
    count = _COUNT.get()
    if count is not None:
        count.total, count.done = parts, 0
        count.listener(0.0)


def advance() -> None:
    """One more part of the stage is done."""
    count = _COUNT.get()
    if count is not None and count.total:
        count.done += 1
        count.listener(min(1.0, count.done / count.total))
