"""Options that contradict each other: refused in one line, before any work begins.

A command lists its own as rules over what was said on its line; defaults contradict nothing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from st3fx.files.ours import BUNDLE

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Apart:
    """Two options that cannot both be given, and why."""

    first: str
    second: str
    why: str

    def broken(self, context: click.Context) -> str | None:
        """What to say, if it is broken."""
        if is_given(context, self.first) and is_given(context, self.second):
            return f"{flag(context, self.first)} and {flag(context, self.second)}: {self.why}"
        return None


@dataclass(frozen=True)
class Needs:
    """An option that says nothing without another one, which may have to have one value."""

    option: str
    other: str
    value: object = None

    def broken(self, context: click.Context) -> str | None:
        """What to say, if it is broken."""
        found = context.params[self.other]
        held = found == self.value if self.value is not None else found not in (None, False, ())
        if held or not is_given(context, self.option):
            return None
        value = "" if self.value is None else f" {self.value}"
        return (
            f"{flag(context, self.option)} is for {flag(context, self.other)}{value}: "
            "give that too, or leave it out"
        )


@dataclass(frozen=True)
class Alone:
    """An option beside which few others mean anything."""

    option: str
    beside: tuple[str, ...] = ()

    def broken(self, context: click.Context) -> str | None:
        """What to say, if it is broken."""
        if not is_given(context, self.option):
            return None
        for name in context.params:
            if name not in (self.option, *self.beside) and is_given(context, name):
                return f"{flag(context, self.option)} takes no {flag(context, name)}"
        return None


Rule = Apart | Needs | Alone


def rules(*each: Rule) -> Callable[[Command], Command]:
    """Refuse lines that break one of the rules.

    Raises:
        UsageError: When the command is called so.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def checked(*args: Any, **options: Any) -> Any:
            context = click.get_current_context()
            for rule in each:
                said = rule.broken(context)
                if said is not None:
                    raise click.UsageError(said)
            return command(*args, **options)

        return checked  # type: ignore[return-value] # it is called as the command is

    return decorate


def is_given(context: click.Context, name: str) -> bool:
    """Whether the command line says something about a parameter."""
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def flag(context: click.Context, name: str) -> str:
    """How an option is spelled, ``--output``, or an argument, ``SPEC``."""
    found = next(item for item in context.command.params if item.name == name)
    if isinstance(found, click.Option):
        return found.opts[-1]
    return found.make_metavar(context)


_MADE_OF = (
    "settings.toml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt",
    *BUNDLE, *(f"model.st3fx/{name}" for name in BUNDLE),
)  # fmt: skip
"""Files in the folder of a run or a bundle that nothing makes again."""


def require_apart(written: Mapping[str, object], read: Iterable[object]) -> None:
    """Refuse a result that would replace another one, or what it is made from.

    Args:
        written: Option -> the file or folder that it names, or ``None``.
        read: Files and folders that the command reads, and texts that may be such.

    Raises:
        UsageError: Naming the option.
    """
    sources = [os.path.realpath(str(path)) for path in read if path and Path(str(path)).exists()]
    taken = {str(Path(path) / name): "" for path in sources for name in _MADE_OF}
    taken |= dict.fromkeys(sources, "")
    for option, path in written.items():
        if path is None:
            continue
        place = os.path.realpath(str(path))
        if place in taken:
            other = taken[place]
            what = f"{other} writes that" if other else "it is read from there"
            raise click.UsageError(f"{option} {path}: {what}; name another file")
        taken[place] = option
