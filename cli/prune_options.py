"""Options of the commands that take a trained model, or prune one now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def prune_options(command: Command) -> Command:
    """How sparse, where training has not decided it."""
    command = click.option(
        "--allow-dense", is_flag=True, help="Take a model that has no zeros yet as it is."
    )(command)
    return click.option(
        "--sparsity",
        type=float,
        metavar="S",
        help="Prune now, without training, to this share of zeros among the sites' weights: 0 or "
        "more, below 1.",
    )(command)
