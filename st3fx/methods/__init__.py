"""The sparsification methods, one file each, and the table of them.

Imports the mathematics below (``sparsity``) and the plan. Start at ``gmp``, the shortest; ``base``
says what is asked of a method. The command line, which must not import torch, has the names once
more (``METHOD_NAMES`` in ``cli/options.py``; a test holds them equal).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from collections.abc import Callable, Iterable
from typing import Any, get_args, get_type_hints

from st3fx.errors import MethodError
from st3fx.methods.acdc import ACDC
from st3fx.methods.base import LearnedMethod, Method, ScheduledMethod, TargetMethod
from st3fx.methods.dst import DST
from st3fx.methods.feather import Feather
from st3fx.methods.gmp import GMP
from st3fx.methods.granet import GraNet
from st3fx.methods.lrr import LRR
from st3fx.methods.moving import MovingMethod
from st3fx.methods.probmask import ProbMask
from st3fx.methods.rigl import RigL
from st3fx.methods.st3 import ST3
from st3fx.methods.str import STR
from st3fx.sparsity.schedule import CubicSchedule

__all__ = [
    "ACDC", "DST", "GMP", "LRR", "METHODS", "ST3", "STR", "Feather", "GraNet", "LearnedMethod",
    "Method", "MovingMethod", "ProbMask", "RigL", "ScheduledMethod", "TargetMethod",
    "create", "from_dict", "key_of",
    "own_settings", "to_dict",
]  # fmt: skip

METHODS: dict[str, Callable[..., Method]] = {
    "st3": ST3,
    "st3-sigma": functools.partial(ST3, normalize="sigma"),
    "dst": DST,
    "str": STR,
    "feather": Feather,
    "gmp": GMP,
    "lrr": LRR,
    "probmask": ProbMask,
    "rigl": RigL,
    "granet": GraNet,
    "acdc": ACDC,
}
"""Name on the command line -> constructor."""


def _class_of(make: Callable[..., Method]) -> type[Method]:
    return make.func if isinstance(make, functools.partial) else make  # type: ignore[return-value]


_CLASSES = {cls.name: cls for cls in map(_class_of, METHODS.values())}


def key_of(method: Method) -> str:
    """The method's name on the command line: that of the variant that it is, if it is one."""
    plain = method.name
    for key, make in METHODS.items():
        if isinstance(make, functools.partial) and type(method) is make.func:
            fixed = all(getattr(method, name) == value for name, value in make.keywords.items())
            plain = key if fixed else plain
    return plain


def create(name: str, **settings: Any) -> Method:
    """The method called ``name`` with the given settings.

    Raises:
        MethodError: For an unknown name, an unknown setting or a value outside its range.
    """
    if name not in METHODS:
        raise MethodError(f"no method {name!r}: there are {', '.join(sorted(METHODS))}")
    return _construct(name, METHODS[name], settings)


def own_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings from texts such as ``normalize=sigma``: numbers and booleans where they are ones.

    Raises:
        MethodError: For a text without ``=``.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, mark, value = text.partition("=")
        if not mark:
            raise MethodError(f"--method-option {text!r}: give NAME=VALUE, e.g. normalize=sigma")
        try:
            settings[key.strip()] = json.loads(value.strip().lower())
        except ValueError:
            settings[key.strip()] = value.strip()
    return settings


def to_dict(method: Method) -> dict[str, Any]:
    """A method and all its settings as JSON values."""
    settings = dataclasses.asdict(method) | {"granularity": method.granularity.text}
    if isinstance(method, TargetMethod):
        settings["sparsity_of"] = dict(method.own_targets)
    return {"name": method.name, **settings}


def from_dict(data: dict[str, Any]) -> Method:
    """The inverse of :func:`to_dict`.

    Raises:
        MethodError: For an unknown name, an unknown setting or a value outside its range.
    """
    settings = dict(data)
    cls = _CLASSES.get(f"{settings.pop('name', None)}")
    if cls is None:
        raise MethodError(f"no method {data.get('name')!r}: there are {', '.join(_CLASSES)}")
    return _construct(cls.name, cls, settings)


def _construct(name: str, make: Callable[..., Method], settings: dict[str, Any]) -> Method:
    schedule = settings.get("schedule")
    try:
        if isinstance(schedule, dict):
            settings = {**settings, "schedule": CubicSchedule(**schedule)}
        made = make(**settings)
        _check_types(made)
        return made
    except TypeError as error:
        fields = sorted(
            dataclasses.fields(_class_of(make)), key=lambda field: field.kw_only is True
        )
        known = ", ".join(field.name for field in fields)
        raise MethodError(f"method {name!r}: {error}; its settings are {known}") from error


def _check_types(made: Any) -> None:
    """Fail for settings of other types than their fields, as a file may have them.

    Raises:
        TypeError: Naming the setting.
    """
    hints = get_type_hints(type(made))
    for field in dataclasses.fields(made):
        value, kind = getattr(made, field.name), hints[field.name]
        kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        classes = tuple(one for one in kinds if isinstance(one, type))
        if classes == kinds and not _is_one(value, classes):
            raise TypeError(f"{field.name} = {f'{value!r}':.40} is of a wrong type")
        if dataclasses.is_dataclass(value):
            _check_types(value)


def _is_one(value: Any, classes: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in classes
    return isinstance(value, (*classes, int) if float in classes else classes)
