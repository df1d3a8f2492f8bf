"""``st3fx``: the group of all commands."""

from __future__ import annotations

import click

from st3fx.cli.analyze import analyze
from st3fx.cli.bench import bench
from st3fx.cli.convert import convert
from st3fx.cli.doctor import doctor
from st3fx.cli.errors import ErrorBoundary
from st3fx.cli.export import export
from st3fx.cli.fold import fold
from st3fx.cli.train import train
from st3fx.version import VERSION


@click.group("st3fx", cls=ErrorBoundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="st3fx")
def main() -> None:
    """Sparse training for any PyTorch model: convert, train, fold, export, measure."""


main.add_command(convert)
main.add_command(train)
main.add_command(fold)
main.add_command(export)
main.add_command(analyze)
main.add_command(bench)
main.add_command(doctor)
