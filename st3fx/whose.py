"""Whose code a file is: torch's, ours, Python's, an installed library's, or else the user's."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

import torch

TORCH: Final = str(Path(torch.__file__).parent)
PACKAGE: Final = str(Path(__file__).parent)
"""The folder of st3fx."""

_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")
_COMPILER = tuple(str(Path(PACKAGE) / name) for name in ("passes", "graphs", "modules", "sparsity"))

USER_MODULE = "st3fx_user_"
"""What the names of modules that are users' files begin with; 12 digits of a digest come next."""

_PASSING = (PACKAGE + os.sep, TORCH + os.sep, contextlib.__file__)


def callers_level() -> int:
    """The ``stacklevel`` of a warning that names the line from which st3fx was called."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSING):
        level, frame = level + 1, frame.f_back
    return level


def is_torchs(file: str) -> bool:
    """Whether a file is torch's."""
    return file.startswith(TORCH)


def is_compilers(file: str) -> bool:
    """Whether a file of ours runs while a model does; others may be the model (``models.py``)."""
    return file.startswith(_COMPILER)


def is_installed(file: str) -> bool:
    """Whether a file is an installed library's."""
    return any(folder in file for folder in _INSTALLED)


def is_users(file: str, libraries: tuple[str, ...]) -> bool:
    """Whether a file may be what a user has written, or an installed model.

    Args:
        file: Its path, or a name like ``<string>``.
        libraries: Installed packages that work for us, and are not meant.
    """
    if file.startswith(("<", PACKAGE, TORCH)):
        return False
    if is_installed(file):
        return not any(f"/{name}/" in file for name in libraries)
    return not file.startswith(_STANDARD)
