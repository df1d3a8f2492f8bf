"""How commands show their results: as tables, or as JSON and nothing else."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import click


class Result(Protocol):
    """Something that a command gives."""

    def to_dict(self) -> dict[str, Any]:
        """Give this result as JSON values."""


R = TypeVar("R", bound=Result)


def stdout_for(*, as_json: bool) -> contextlib.AbstractContextManager[object]:
    """Keep what models print while a command works out of the JSON on stdout."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def show(result: R, view: Callable[[R], None], *, as_json: bool) -> None:
    """Print a result by its view, or as JSON."""
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
    else:
        view(result)
