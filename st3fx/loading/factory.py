"""Finds in a module what builds the model, and calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from st3fx.core.messages import few, suggest
from st3fx.errors import SpecError
from st3fx.loading.user_file import user_code


def build(module: ModuleType, factory: str | None, where: str) -> nn.Module:
    """The model that ``module`` builds.

    Args:
        module: The user's module.
        factory: Name of a callable or of a model in it, dots allowed; ``None`` chooses
            ``build_model``, else the only model class that takes no arguments.
        where: The module as the user named it, for messages.

    Raises:
        SpecError: When there is no such factory, when there are several, when it needs arguments,
            raises (its exception is the cause) or gives something else than a model.
    """
    if factory is None:
        factory = "build_model" if hasattr(module, "build_model") else _only_class(module, where)
    target = _lookup(module, factory, where)
    if isinstance(target, nn.Module):
        return target
    if not callable(target):
        raise SpecError(f"{where}: {factory} is {_a(target)}, not a callable")
    needed = required_arguments(target)
    if needed:
        raise SpecError(
            f"{where}: {factory}() needs arguments ({', '.join(needed)}); give them defaults, "
            "or name a factory that takes none"
        )
    with user_code(f"{where}: {factory}()"):
        model = target()
    if not isinstance(model, nn.Module):
        raise SpecError(f"{where}: {factory}() returned {_a(model)}, not a torch.nn.Module")
    return model


def example_inputs(module: ModuleType, where: str) -> Any:
    """What ``example_inputs()`` in ``module`` gives, or ``None`` if there is none.

    Returns:
        A tensor, a tuple of positional arguments or a dict of keyword arguments.

    Raises:
        SpecError: When it raises (its exception is the cause) or gives something else.
    """
    function: Callable[[], Any] | None = getattr(module, "example_inputs", None)
    if function is None:
        return None
    with user_code(f"{where}: example_inputs()"):
        value = function()
    if isinstance(value, (Tensor, tuple, dict)):
        return value
    raise SpecError(
        f"{where}: example_inputs() returned {_a(value)}; return a tensor, a tuple of positional "
        "arguments, or a dict of keyword arguments"
    )


def required_arguments(target: Callable[..., Any]) -> list[str]:
    """Names of the arguments without a default; empty where no signature can be had."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _only_class(module: ModuleType, where: str) -> str:
    """Name of the only model class defined in ``module`` that takes no arguments."""
    classes = {
        value.__name__: value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    }
    ready = [name for name, cls in classes.items() if not required_arguments(cls)]
    if len(ready) == 1:
        return ready[0]
    if ready:
        choices = " or ".join(f"{where}:{name}" for name in ready[:2])
        raise SpecError(
            f"{where} defines several models ({few(ready, limit=8)}): name one, e.g. {choices}, "
            "or add build_model()"
        )
    seen = "".join(
        f"; {name} needs {', '.join(required_arguments(classes[name]))}"
        for name in list(classes)[:3]
    )
    raise SpecError(
        f"{where} has no build_model() and no nn.Module class that takes no arguments{seen}: "
        f"add build_model(), or name a factory as {where}:NAME"
    )


def _lookup(module: ModuleType, name: str, where: str) -> Any:
    """``module.a.b`` for ``a.b``."""
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            options = [
                key
                for key, value in vars(module).items()
                if callable(value) and not key.startswith("_")
            ]
            raise SpecError(f"{where} has no {name!r}{suggest(name, options)}")
        target = getattr(target, part)
    return target


def _a(value: object) -> str:
    """``a list``, ``an int``, ``None``."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
