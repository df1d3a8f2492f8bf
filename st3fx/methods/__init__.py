"""The sparsification methods, one file each, and the one table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from st3fx.errors import MethodError
from st3fx.methods.base import Method
from st3fx.methods.st3 import ST3
from st3fx.schedule import CubicSchedule

__all__ = ["METHODS", "ST3", "Method", "create", "from_dict", "to_dict"]

METHODS: dict[str, Callable[..., Method]] = {
    "st3": ST3,
    "st3-sigma": lambda **settings: ST3(**{"normalize": "sigma", **settings}),
}
"""Name on the command line -> constructor."""

_CLASSES: dict[str, type[Any]] = {cls.name: cls for cls in (ST3,)}


def create(name: str, **settings: Any) -> Method:
    """The method called ``name`` with the given settings.

    Raises:
        MethodError: For an unknown name or a value outside its range.
    """
    if name not in METHODS:
        raise MethodError(f"no method {name!r}: there are {', '.join(sorted(METHODS))}")
    return METHODS[name](**settings)


def to_dict(method: Method) -> dict[str, Any]:
    """A method and all its settings as JSON values."""
    return {"name": method.name, **dataclasses.asdict(method)}  # type: ignore[call-overload]


def from_dict(data: dict[str, Any]) -> Method:
    """The inverse of :func:`to_dict`.

    Raises:
        MethodError: For an unknown name, an unknown setting or a value outside its range.
    """
    settings = dict(data)
    cls = _CLASSES.get(settings.pop("name", None))
    if cls is None:
        raise MethodError(f"no method {data.get('name')!r}: there are {', '.join(_CLASSES)}")
    schedule = settings.pop("schedule", None)
    try:
        if schedule is not None:
            settings["schedule"] = CubicSchedule(**schedule)
        method: Method = cls(**settings)
    except TypeError as error:
        raise MethodError(f"method {cls.name!r}: {error}") from error
    return method
