"""How commands show their results: as tables, or as JSON and nothing else.

What is printed without a console of ``cli.views`` goes through :func:`say`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol, TypeVar

import click

from st3fx.errors import printable


class Result(Protocol):
    """Something that a command gives."""

    def to_dict(self) -> dict[str, Any]:
        """Give this result as JSON values."""


R = TypeVar("R", bound=Result)


def say(text: str, *, err: bool = False, file: IO[Any] | None = None, end: str = "\n") -> None:
    """Print lines, with escapes in the place of what steers a terminal."""
    shown = printable(text, lines=True)
    if not err:
        click.echo(f"{shown}{end}", file=file, nl=False)
        return
    with contextlib.suppress(OSError):  # the exit code still says it
        click.echo(f"{shown}{end}", err=True, nl=False)


def stdout_for(*, as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Keep what models print while a command works out of the JSON on stdout."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def show(result: R, view: Callable[[R], None], *, as_json: bool) -> None:
    """Print a result by its view, or as JSON."""
    if as_json:
        say(json.dumps(result.to_dict(), indent=1))
    else:
        view(result)
