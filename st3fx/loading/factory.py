"""Finds in a module what builds the model, and calls it.

Runs a user's Python file as a module, with the modules beside it within reach.

The file behaves as if Python had started it as a script: its folder is first on ``sys.path``, and
stays there, as functions may import later. Unlike a script it is not ``__main__``, and it has a
module name of its own, so that two files called ``model.py`` can be loaded into one process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from st3fx.errors import SpecError, TrustError, describe, few, suggest
from st3fx.whose import USER_MODULE

_folders: set[Path] = set()
"""Folders that this process has loaded files from."""


@contextlib.contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Around a call of the user's own code: what it raises becomes one line, its cause kept.

    Args:
        doing: The message's subject, e.g. ``model.py: build_model()``.

    Raises:
        SpecError: From what the user's code raised. A ``SystemExit`` counts: a script that parses
            its arguments at import time would otherwise end this program without a word.
    """
    try:
        yield
    except TrustError:
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(f"{doing} raised {describe(error)}") from error


def import_file(path: Path, source: bytes, where: str) -> ModuleType:
    """Run ``source`` as the module that ``path`` holds, once per path and content.

    Args:
        path: Absolute path of the file.
        source: Its content. Given, not read again, so that a hash of it is a hash of what ran.
        where: The path as the user wrote it, for messages.

    Raises:
        SpecError: When the file does not compile or raises; the user's exception is the cause.
    """
    prepend_to_path(path.parent)
    digest = hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:12]
    name = f"{USER_MODULE}{digest}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and pickle look a class's module up by name.
    sys.modules[name] = module
    try:
        with user_code(where):
            # Compiled here and not by the module's loader, which would leave a __pycache__ behind.
            exec(compile(source, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def prepend_to_path(folder: Path) -> None:
    """Put ``folder`` first on ``sys.path`` and forget the modules that it now shadows."""
    text = str(folder)
    if sys.path[:1] != [text]:
        sys.path[:] = [text, *(entry for entry in sys.path if entry != text)]
    _forget_namesakes(folder)
    _folders.add(folder)
    importlib.invalidate_caches()


def _forget_namesakes(folder: Path) -> None:
    """Drop modules of other users' folders that ``folder`` has files of the same name for.

    ``import layers`` in the second model's file would silently find the first model's otherwise.
    The objects that the first model holds live on.
    """
    others = {str(other) for other in _folders if other != folder}
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if "." in name or not origin:
            continue
        home = Path(origin).parent
        if home.name == name and Path(origin).name == "__init__.py":
            home = home.parent
        has_namesake = (folder / f"{name}.py").exists() or (folder / name).is_dir()
        if str(home) in others and has_namesake:
            for loaded in [key for key in sys.modules if key.partition(".")[0] == name]:
                del sys.modules[loaded]


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
    require_users(target, f"{where}: {factory}")
    if isinstance(target, type) and not issubclass(target, nn.Module):
        raise SpecError(f"{where}: {factory} is a class that is no torch.nn.Module")
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


def require_users(target: Any, what: str) -> None:
    """Fail unless a callable may be what a user has written to be called so, before it is called.

    Raises:
        SpecError: For what is no callable, is Python's own, or says that it returns no object of
            a library's or the user's.
    """
    if not callable(target):
        raise SpecError(f"{what} is {_a(target)}, not a callable")
    inner = inspect.unwrap(target)
    home = str(getattr(inner, "__module__", None) or "builtins").partition(".")[0]
    if home in sys.stdlib_module_names and not isinstance(inner, functools.partial):
        raise SpecError(f"{what} is a part of Python itself ({home}): name a function of your own")
    try:
        given = inspect.get_annotations(inner, eval_str=False).get("return", inner)
    except TypeError:
        return
    name = given if isinstance(given, str) else getattr(given, "__name__", repr(given))
    if name in ("None", "bool", "int", "float", "str", "bytes"):
        raise SpecError(f"{what} returns {name}, as it says itself: name what builds it")


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
