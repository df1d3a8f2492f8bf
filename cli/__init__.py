"""The command line. The only code of st3fx that prints."""

from st3fx.cli.app import main

__all__ = ["main"]
