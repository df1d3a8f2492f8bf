"""Where library errors become what a user sees: one line, exit code 2.

What the user's own code raised is shown with its traceback, without the frames of libraries.
Anything else is a bug in st3fx: it keeps its traceback and ends with exit code 1.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path
from typing import IO, Any

import click

from st3fx.errors import St3fxError


class Failure(click.ClickException):
    """A user's mistake: what the user's code raised, if it did, then one line."""

    exit_code = 2

    def __init__(self, error: St3fxError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.traceback = user_traceback(error.__cause__)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr, or to ``file``."""
        click.echo(f"{self.traceback}error: {self.message}", file=file, err=file is None)


class ErrorBoundary(click.Group):
    """A group whose commands fail with :class:`Failure` where the library raises ``St3fxError``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the context names."""
        try:
            return super().invoke(ctx)
        except St3fxError as error:
            raise Failure(error) from error


def user_traceback(cause: BaseException | None) -> str:
    """The traceback of ``cause``, of the user's own frames alone.

    Returns:
        Lines as Python prints them, or nothing when no code of the user's took part: installed
        packages and st3fx are not the user's.
    """
    if cause is None:
        return ""
    if isinstance(cause, SyntaxError) and _is_users(cause.filename or ""):
        return "".join(traceback.format_exception_only(cause))
    frames = traceback.extract_tb(cause.__traceback__)
    users = [frame for frame in frames if _is_users(frame.filename)]
    if not users:
        return ""
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(users)]
    return "".join([*lines, *traceback.format_exception_only(cause)])


def _is_users(filename: str) -> bool:
    if not filename or filename.startswith("<"):
        return False
    path = os.path.realpath(filename)
    if "/site-packages/" in path or "/dist-packages/" in path or _is_ours(path):
        return False
    library = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return not any(path.startswith(folder + os.sep) for folder in library)


def _is_ours(filename: str) -> bool:
    path = os.path.realpath(filename)
    return any(path.startswith(folder + os.sep) for folder in _FOLDERS)


def _our_folders() -> tuple[str, ...]:
    """The package's folder, and those that its links lead to in a checkout."""
    package = Path(__file__).parent.parent
    if package.name != "st3fx":
        # Imported through the real path of a checkout's cli/, which stands beside st3fx/.
        package /= "st3fx"
    return tuple(os.path.realpath(package / name) for name in (".", "passes", "cli"))


_FOLDERS = _our_folders()
