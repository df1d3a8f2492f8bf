"""``st3fx``: the group of all commands."""

from __future__ import annotations

import click

from st3fx.cli.analyze import analyze
from st3fx.cli.bench import bench
from st3fx.cli.completion import completion
from st3fx.cli.convert import convert
from st3fx.cli.demo import demo
from st3fx.cli.doctor import doctor
from st3fx.cli.errors import ErrorBoundary
from st3fx.cli.export import export
from st3fx.cli.fold import fold
from st3fx.cli.report import report
from st3fx.cli.train import train
from st3fx.version import VERSION

SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Make a model sparse": (convert, train),
    "Put it to use": (fold, export),
    "See what it is worth": (analyze, bench, report),
    "Find your way": (demo, doctor, completion),
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
    prunes them while it trains, fold and export write what is left, analyze and bench say what that
    is worth, and report shows all of it on one page. Each has --help with examples, and --json
    where it has a result.
    """


for _commands in SECTIONS.values():
    for _command in _commands:
        main.add_command(_command)
