"""Small parts of error messages: one line each, and never an endless list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def describe(error: BaseException, *, limit: int = 200) -> str:
    """``TypeError: what it said``: the type and the first line of the message, cut at ``limit``."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def few(items: Iterable[str], *, limit: int = 4) -> str:
    """``a, b, c, d and 12 more``; ``none`` if there are none."""
    names = list(items)
    shown = ", ".join(names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"


def suggest(name: str, options: Sequence[str]) -> str:
    """``; did you mean a, b?`` with the options that look like ``name``, or nothing."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""
