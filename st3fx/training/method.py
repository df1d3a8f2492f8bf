"""The sparsification method that settings ask for."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from st3fx import methods
from st3fx.core.schedule import CubicSchedule
from st3fx.errors import TrainError
from st3fx.methods.base import LearnedMethod, Method, ScheduledMethod
from st3fx.training.settings import Settings

DEFAULT = "st3"


def make_method(settings: Settings) -> Method:
    """A new method.

    Raises:
        TrainError: When a sparsity is asked of a method that learns its thresholds.
        MethodError: For an unknown method or setting, or a value outside its range.
    """
    name = settings.method or DEFAULT
    given = _given(settings)
    plain = methods.create(name, **_options(settings))
    if isinstance(plain, LearnedMethod) and given:
        raise TrainError(
            f"{name} learns its thresholds, and has no {' or '.join(given)}: leave that out, or "
            "take another --method"
        )
    return methods.create(name, **given, **_options(settings))


def adjusted(method: Method, settings: Settings) -> Method:
    """A bundle's method with the sparsity, the budget and the ramp that settings ask for.

    Raises:
        TrainError: When they ask for another method: the bundle's graphs are made for its own.
    """
    if settings.method not in (None, method.name) or settings.method_options:
        raise TrainError(
            f"the bundle was converted for {method.name}: convert the model again for another "
            "--method or --method-option"
        )
    given = _given(settings)
    if given and not isinstance(method, ScheduledMethod):
        raise TrainError(f"{method.name} learns its thresholds, and has no {' or '.join(given)}")
    return dataclasses.replace(method, **given)


def _given(settings: Settings) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if settings.sparsity is not None:
        given["sparsity"] = settings.sparsity
    if settings.budget != "weights":
        given["budget"] = settings.budget
    if settings.ramp:
        given["schedule"] = CubicSchedule(settings.ramp[0], settings.ramp[1])
    return given


def _options(settings: Settings) -> dict[str, Any]:
    options = {}
    for text in settings.method_options:
        key, mark, value = text.partition("=")
        if not mark:
            raise TrainError(f"--method-option {text!r}: give NAME=VALUE, e.g. normalize=sigma")
        options[key.strip()] = _value(value.strip())
    return options


def _value(text: str) -> Any:
    """A number or a boolean where the text is one, else the text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text
