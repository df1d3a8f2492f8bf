"""``st3fx``: the group of all commands, and what a user sees of an error.

A library error becomes one line with exit code 2, and so does a line that click does not
understand, and what the machine has run out of. What the user's own code raised is shown with its
traceback, without the frames of libraries. Anything else is a bug in st3fx: it keeps its traceback
and ends with exit code 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TextIO

import click

from st3fx.cli.analyze import analyze
from st3fx.cli.bench import bench
from st3fx.cli.compare import compare
from st3fx.cli.completion import completion
from st3fx.cli.convert import convert
from st3fx.cli.demo import demo
from st3fx.cli.doctor import doctor
from st3fx.cli.export import export
from st3fx.cli.fold import fold
from st3fx.cli.inspect import inspect
from st3fx.cli.output import say
from st3fx.cli.quantize import quantize
from st3fx.cli.report import report
from st3fx.cli.sensitivity import sensitivity
from st3fx.cli.sweep import sweep
from st3fx.cli.terminal import INTERRUPTED
from st3fx.cli.train import train
from st3fx.errors import ResourceError, St3fxError, TargetWarning, exhausted, printable
from st3fx.version import VERSION


class Failure(click.ClickException):
    """A user's mistake: what the user's code raised, if it did, then one line."""

    exit_code = 2

    def __init__(self, error: Exception | str) -> None:
        super().__init__(" ".join(str(error).split()))
        cause = error.__cause__ if isinstance(error, St3fxError) else None
        users = cause is not None and exhausted(cause) is None
        self.traceback = user_traceback(cause) if users else ""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr, or to ``file``."""
        say(f"{self.traceback}error: {self.message}", file=file, err=file is None)


class Stopped(click.ClickException):
    """Ctrl-C, where nothing is kept that one could go on with."""

    exit_code = INTERRUPTED

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr, or to ``file``."""
        say(self.message, file=file, err=file is None)


class ErrorBoundary(click.Group):
    """A group whose commands fail with :class:`Failure` where user or machine are the cause."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse what stands before the command's name."""
        with _boundary():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the context names."""
        plain, warnings.formatwarning = warnings.formatwarning, _warning
        try:
            with _boundary(), _at_the_end():
                return super().invoke(ctx)
        finally:
            warnings.formatwarning = plain


@contextlib.contextmanager
def _at_the_end() -> Iterator[None]:
    """What is said of a result comes with it: not where the command fails, and there is none."""
    show, held = warnings.showwarning, list[warnings.WarningMessage]()

    def showwarning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, TargetWarning):
            held.append(warnings.WarningMessage(message, category, filename, lineno, file, line))
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning
    try:
        yield
    finally:
        warnings.showwarning = show
    for item in held:
        show(item.message, item.category, item.filename, item.lineno, item.file, item.line)


@contextlib.contextmanager
def _boundary() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        raise Failure(_usage(error)) from error
    except St3fxError as error:
        raise Failure(error) from error
    except KeyboardInterrupt as error:
        raise Stopped("stopped") from error
    except Exception as error:
        words = exhausted(error)
        if words is None:
            raise
        raise Failure(ResourceError(words)) from error


def _usage(error: click.UsageError) -> str:
    """What click does not understand, and where to read on."""
    text = error.format_message().rstrip(".")
    # click puts its guess behind a full stop, in brackets where there are several.
    said = re.fullmatch(r"(.*?)\.? \(?Did you mean (?:one of: )?(.*?)\??\)?\??", text, re.DOTALL)
    if said:
        text = f"{said[1]}; did you mean {said[2].replace(chr(39), '')}?"
    see = " See" if said else "; see"
    help_ = "" if error.ctx is None else f"{see} {error.ctx.command_path} --help"
    return f"{text[:1].lower()}{text[1:]}{help_}"


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A warning of ours in one line, as an error is; others with the line that they came from."""
    if category.__module__ == St3fxError.__module__:
        return f"warning: {printable(str(message))}\n"
    return printable(_PLAIN(message, category, filename, lineno, line), lines=True)


_PLAIN = warnings.formatwarning


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


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Make a model sparse": (convert, train),
    "Put it to use": (fold, export, quantize),
    "See what it is worth": (analyze, bench, sensitivity, sweep, report, compare),
    "Find your way": (inspect, demo, doctor, completion),
}
"""All commands, in the order of the work, under the headings of the help text."""


class Story(ErrorBoundary):
    """A group that lists its commands in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section with its commands; what they do is never cut short."""
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(str(item.name).ljust(width), _sentence(item)) for item in commands]
                formatter.write_dl(rows)


def _sentence(command: click.Command) -> str:
    """The first sentence of a command's help text."""
    return command.get_short_help_str(limit=1000)


@click.group("st3fx", cls=Story, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="st3fx")
def main() -> None:
    """Sparse training for any PyTorch model.

    A model goes through the commands from the top: convert finds the weights that multiply, train
    prunes them while it trains, fold, export and quantize write what is left, analyze and bench say
    what that is worth, report shows all of it on one page, and compare lays runs beside each other.
    Each has --help with examples, and --json where it has a result.

    Opening a bundle, a run or a file of settings runs no code that it names, unless you have named
    that code yourself before and it is unchanged. --trust runs it and remembers so for the folder,
    --model SPEC takes code that you name instead.
    """


for _commands in SECTIONS.values():
    for _command in _commands:
        main.add_command(_command)
