"""Options from a dataclass of settings: each field becomes one, with all its spellings."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from st3fx.cli.options import METHOD_NAMES
from st3fx.cli.param_types import DATA, FOLDER, WEIGHTS
from st3fx.training.recipes import RECIPES
from st3fx.training.settings import SECTIONS, Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class SectionedOption(click.Option):
    """An option that belongs under a heading of the help text."""

    section: str | None = None


class SectionedCommand(click.Command):
    """A command whose help text lists options under the headings of their sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a section last."""
        for section in (*SECTIONS, None):
            rows = [
                record
                for item in self.get_params(ctx)
                if isinstance(item, click.Option)
                and getattr(item, "section", None) == section
                and (record := item.get_help_record(ctx)) is not None
            ]
            if rows:
                with formatter.section((section or "options").capitalize()):
                    formatter.write_dl(rows)


class Numbers(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click
    """Numbers with commas between them."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """``"80,120"`` as numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 80,120", param, ctx)


def settings_options(command: Command) -> Command:
    """One option per setting; what is not given on the command line arrives as ``None`` or ``()``.

    So a recipe, a file or a run that goes on can tell what was said from what was not.
    """
    hints = typing.get_type_hints(Settings)
    for field in reversed(dataclasses.fields(Settings)):
        if field.name != "spec":
            command = _option(field, hints[field.name])(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that the user said something about."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    flags = list(field.metadata["flags"]) or [f"--{field.name.replace('_', '-')}"]
    names = [f for f in flags if f.startswith("--")]
    settings: dict[str, Any] = {"help": _help(field), "default": None, "cls": SectionedOption}
    if hint is bool:
        flags = ["/".join((name, f"--no-{name.removeprefix('--')}")) for name in names]
    elif hint == tuple[str, ...]:
        settings |= {"multiple": True, "metavar": "TEXT", "default": ()}
    elif hint == tuple[float, ...]:
        settings |= {"type": Numbers(), "metavar": "A,B"}
    else:
        settings |= _type(field, hint)
    option = click.option(*flags, field.name, **settings)

    def decorate(command: Command) -> Command:
        decorated = option(command)
        params = getattr(decorated, "__click_params__")  # noqa: B009 (click's own, not typed)
        params[-1].section = field.metadata["section"]
        return decorated

    return decorate


def _type(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    tables = {"recipe": RECIPES, "method": METHOD_NAMES}
    choices = tables.get(field.name, field.metadata["choices"])
    if choices:
        return {"type": click.Choice(list(choices))}
    if field.name in _COMPLETED:
        return {"type": _COMPLETED[field.name], "metavar": "TEXT"}
    inner = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return {"type": inner[0], "metavar": {int: "N", float: "X", str: "TEXT"}[inner[0]]}


_COMPLETED = {"data": DATA, "weights": WEIGHTS, "data_path": FOLDER, "output_dir": FOLDER}
"""Settings that a shell completes."""


def _help(field: dataclasses.Field[Any]) -> str:
    text: str = field.metadata["help"]
    if field.default in (None, (), False):
        return text
    return f"{text}  [default: {'on' if field.default is True else field.default}]"
