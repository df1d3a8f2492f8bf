r"""Elements whose texts are escaped unless they are markup, and numbers as a person reads them.

What a reader cannot see, or what turns the direction of writing, is shown as an escape: ``\x1b``.

A number and its unit stay on one line.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from st3fx.errors import printable

EMPTY = Markup("")

_VOID = frozenset({"br", "input", "meta", "wbr"})


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """One element.

    Args:
        name: Of the element.
        children: Its content in order; whatever is no :class:`Markup` is escaped.
        attributes: Their values are escaped. ``class_`` is ``class`` and other underscores are
            dashes; ``None`` and ``False`` leave an attribute out, ``True`` gives it no value.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        parts.append(f" {attribute}" if value is True else f' {attribute}="{_value(value)}"')
    parts.append(">")
    if name not in _VOID:
        parts += [join(children), f"</{name}>"]
    return Markup("".join(parts))


def join(children: Iterable[object]) -> Markup:
    """Pieces side by side; whatever is no :class:`Markup` is escaped."""
    return Markup("".join(c if isinstance(c, Markup) else _escaped(c) for c in children))


def seen(value: object) -> object:
    """A text without what cannot be seen; anything else, and markup, as it is."""
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return printable(str(value), lines=True) if plain else value


def _escaped(value: object) -> str:
    return html.escape(printable(str(value), lines=True))


def _value(value: object) -> str:
    """An attribute's value; numbers of a drawing have two digits, which is sharp enough."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return _escaped(value)


SPACE = "\u00a0"
"""Between a number and its unit."""


def percent(share: float, digits: int = 1) -> str:
    """``61.7 %``; shares that are not all or nothing are never rounded to 0 or 100 %."""
    text = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if 0 < share < 1 and float(text) in (0.0, 100.0):
        return f"<{SPACE}{least:g}{SPACE}%" if share < 0.5 else f">{SPACE}{100 - least:g}{SPACE}%"
    return f"{text}{SPACE}%"


def count(number: float) -> str:
    """``4.09 G``, ``118 M``, ``512``: three digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{three(number / size)}{SPACE}{unit}"
    return f"{number:.0f}" if float(number).is_integer() else three(number)


def size(amount: int) -> str:
    """``152 kB``, ``1.09 MB``."""
    return f"{amount}{SPACE}B" if amount < 1000 else f"{count(amount)}B"


def milliseconds(value: float) -> str:
    """``12.4 ms``, ``840 µs``."""
    return f"{three(value)}{SPACE}ms" if value >= 1 else f"{three(1000 * value)}{SPACE}µs"


def times(ratio: float) -> str:
    """``2.31 ×``."""
    return f"{three(ratio)}{SPACE}×"


def three(value: float) -> str:
    """Three digits: ``4.09``, ``61.7``, ``118``; the smallest as a power of ten."""
    if value and abs(value) < 0.001:
        return f"{value:.2g}"
    digits = max(0, 3 - len(f"{abs(value):.0f}")) if abs(value) >= 0.9995 else 3
    return f"{value:.{digits}f}"


def shape(sizes: Sequence[int]) -> str:
    """``64×3×7×7``."""
    return "×".join(map(str, sizes)) or "scalar"


def plural(number: int, noun: str) -> str:
    """``1 site``, ``20 sites``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_name(name: str, limit: int = 26) -> str:
    """A weight's name without its last part ``weight``, cut in the middle where it is too long."""
    text = name.removesuffix(".weight")
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"


def listed(names: Sequence[str], limit: int = 6) -> str:
    """``a, b and c``; of more than ``limit`` the first, and how many more."""
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
