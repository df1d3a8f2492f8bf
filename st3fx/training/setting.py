"""One setting: a field of a dataclass with what is needed to read it from a file or a flag."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from st3fx.errors import TrainError


def setting(
    section: str,
    default: Any,
    help: str,  # noqa: A002 (what it is called everywhere else)
    *,
    flags: str = "",
    choices: tuple[str, ...] = (),
    least: float | None = None,
    below: float | None = None,
    free: bool = False,
) -> Any:
    """A field with what is needed to read it from a file or a flag.

    Args:
        section: Where it is listed, one of ``SECTIONS``.
        default: Its value where nothing is said.
        help: One sentence for ``--help`` and for the comment in ``settings.toml``.
        flags: Spellings on the command line; by default the field's name with dashes.
        choices: The values that it may have.
        least: Smallest value allowed.
        below: Values must be smaller than this.
        free: Whether it may change when a run is resumed: it does not touch the weights.
    """
    metadata = {
        "section": section, "help": help, "flags": tuple(flags.split()), "choices": choices,
        "least": least, "below": below, "free": free,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Fail unless a value has the field's type and lies in its range.

    Raises:
        TrainError: Naming the field and what is allowed.
    """
    name, allowed = field.name, field.metadata
    optional = "None" in str(field.type)
    if value is None and optional:
        return
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "tuple": (tuple,),
    }  # fmt: skip
    kind = str(field.type).removesuffix(" | None").partition("[")[0]
    if not isinstance(value, kinds[kind]) or (kind != "bool" and isinstance(value, bool)):
        raise TrainError(f"{name} = {value!r}: give {_WORDS[kind]}")
    if allowed["choices"] and value not in allowed["choices"]:
        raise TrainError(f"{name} = {value!r}: give {' or '.join(allowed['choices'])}")
    numbers: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    for number in numbers:
        _check_range(name, number, allowed["least"], allowed["below"])


def _check_range(name: str, value: Any, least: float | None, below: float | None) -> None:
    if least is None:
        return
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TrainError(f"{name} = {value!r}: give a number")
    if value < least or (below is not None and value >= below):
        limit = f" and below {below:g}" if below is not None else ""
        raise TrainError(f"{name} = {value:g}: give {least:g} or more{limit}")


_WORDS = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "tuple": "a list",
}  # fmt: skip
