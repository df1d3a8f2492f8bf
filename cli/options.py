"""Options that commands share, each as one decorator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from st3fx.cli.param_types import WEIGHTS, Spec

Command = TypeVar("Command", bound=Callable[..., Any])

METHOD_NAMES = ("st3", "st3-sigma", "dst", "str", "feather", "gmp")
"""Keys of ``st3fx.methods.METHODS``, which takes seconds to import; a test holds them equal."""


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator from several, in the order in which --help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def model_options(command: Command) -> Command:
    """What model, with which weights and inputs."""
    return _all(
        click.argument("spec", metavar="SPEC", type=Spec()),
        click.option(
            "--weights",
            type=WEIGHTS,
            metavar="FILE",
            help="Weights to load: safetensors, .st3w, or a checkpoint of torch.save.",
        ),
        click.option(
            "-i",
            "--input",
            "inputs",
            metavar="SHAPE[:DTYPE]",
            multiple=True,
            help="An example input, e.g. 1x3x224x224 or 1x128:int64, scalar for one of no "
            "dimension. Repeat it for every argument. Without it, example_inputs() beside the "
            "model.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            metavar="N",
            default=0,
            show_default=True,
            help="For random weights and inputs.",
        ),
    )(command)


def method_options(command: Command) -> Command:
    """Which method, how sparse, over how many steps."""
    return _all(
        click.option(
            "--method",
            type=click.Choice(METHOD_NAMES),
            default="st3",
            show_default=True,
            help="How weights become sparse.",
        ),
        click.option(
            "--sparsity",
            type=float,
            help="Share of the sites' weights that training prunes: 0 or more, below 1.  "
            "[default: 0.9; methods that learn their thresholds have none]",
        ),
        click.option(
            "--total-steps",
            type=click.IntRange(1),
            metavar="N",
            help="Optimizer steps of the training to come.",
        ),
    )(command)


def selection_options(command: Command) -> Command:
    """Which sites."""
    return _all(
        click.option(
            "--include",
            metavar="GLOB",
            multiple=True,
            help="Only weights whose full name matches, e.g. 'layer*.weight'. Repeatable.",
        ),
        click.option(
            "--exclude",
            metavar="GLOB",
            multiple=True,
            help="No weight whose full name matches. Repeatable.",
        ),
        click.option("--skip-depthwise", is_flag=True, help="Leave depthwise convolutions dense."),
        click.option("--skip-first", is_flag=True, help="Leave the first site dense."),
        click.option("--skip-last", is_flag=True, help="Leave the last site dense."),
        click.option(
            "--include-tied",
            is_flag=True,
            help="Make the projection of a tied embedding sparse too; its lookups stay dense.",
        ),
        click.option(
            "--keep-zeros/--no-keep-zeros",
            default=True,
            show_default=True,
            help="Of weights that come with zeros, of a folded model: let these stay zero while "
            "training adds others, or come back while others go. The sparsity starts at their "
            "share either way.",
        ),
    )(command)


def json_option(command: Command) -> Command:
    """Machine-readable output."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else."
    )(command)
