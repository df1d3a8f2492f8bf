"""Runs a user's Python file as a module, with the modules beside it within reach.

The file behaves as if Python had started it as a script: its folder is first on ``sys.path``, and
stays there, as functions may import later. Unlike a script it is not ``__main__``, and it has a
module name of its own, so that two files called ``model.py`` can be loaded into one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from st3fx.core.messages import describe
from st3fx.errors import SpecError

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
    name = f"st3fx_user_{digest}_{path.stem}"
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
