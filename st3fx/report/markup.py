"""HTML and SVG elements, in which every text is escaped unless it is markup already."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Markup(str):
    """Text that stands in a page as it is."""

    __slots__ = ()


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
    return Markup("".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children))


def _value(value: object) -> str:
    """An attribute's value; numbers of a drawing have two digits, which is sharp enough."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(str(value))
