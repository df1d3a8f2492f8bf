"""Options from a dataclass of settings: each field becomes one, with all its spellings.

Options that commands share, each as one decorator.

Options of the commands that take a trained model, or prune one now.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from st3fx.cli.completion import DATA, FOLDER, WEIGHTS, Spec
from st3fx.plan.settings import ConversionSettings
from st3fx.training.recipes import RECIPES
from st3fx.training.settings import SECTIONS, Settings, from_dict, read_toml

Command = TypeVar("Command", bound=Callable[..., Any])

METHOD_NAMES = (
    "st3", "st3-sigma", "dst", "str", "feather", "gmp", "lrr", "probmask", "rigl", "granet", "acdc",
)  # fmt: skip
"""Keys of ``st3fx.methods.METHODS``, which takes seconds to import; a test holds them equal."""


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator from several, in the order in which --help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def force_option(what: str) -> Callable[[Command], Command]:
    """``--force``, of a command that writes ``what``."""
    return click.option("--force", is_flag=True, help=f"Replace {what}.")


def model_options(command: Command) -> Command:
    """What model, with which weights and inputs."""
    return _all(
        click.argument("spec", metavar="SPEC", type=Spec()),
        click.option(
            "--weights",
            type=WEIGHTS,
            metavar="FILE",
            help="Weights to load: safetensors, .st3w, a checkpoint of torch.save, or weights in "
            "shards: model.safetensors.index.json, or the folder that it is in.",
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
            "--sparsity-of",
            multiple=True,
            metavar="GLOB=S",
            help="A target of its own for each weight whose full name matches, e.g. "
            "'layer4.*=0.95'; the others have what is left of --sparsity. Repeatable; the last "
            "that matches counts. A file of st3fx sensitivity --budget gives all of them.",
        ),
        click.option(
            "--granularity",
            metavar="WHAT",
            default="unstructured",
            show_default=True,
            help="What is pruned together: unstructured, block:4 (so many consecutive input "
            "channels), nm:2:4 (at most 2 of 4 stay), channels (whole output channels).",
        ),
        click.option(
            "--method-option",
            "method_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="A setting of the method's own, e.g. rescale=false.",
        ),
        click.option(
            "--total-steps",
            type=click.IntRange(1),
            metavar="N",
            help="Optimizer steps of the training to come.",
        ),
    )(command)


def conversion_options(command: Command) -> Command:
    """One option per setting of a conversion: which weights become sparse."""
    hints = typing.get_type_hints(ConversionSettings)
    for field in reversed(dataclasses.fields(ConversionSettings)):
        flag = f"--{field.name.replace('_', '-')}"
        settings: dict[str, Any] = {"is_flag": True}
        if hints[field.name] is not bool:
            settings = _type(field, hints[field.name])
        elif field.default:
            flag, settings = f"{flag}/--no-{flag.removeprefix('--')}", {"show_default": True}
        settings |= {"help": field.metadata["help"], "default": field.default}
        command = click.option(flag, field.name, **settings)(command)
    return command


def json_option(command: Command) -> Command:
    """Machine-readable output."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON and nothing else."
    )(command)


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


DATA_SETTINGS = ("data", "data_path", "workers", "channels", "image_size")
"""Settings of a training that say which data: the options of ``data_options``."""


def data_options(command: Command) -> Command:
    """Which data a trained model is calibrated or scored on."""
    return _all(
        click.option(
            "--data",
            type=DATA,
            metavar="TEXT",
            help="The data: a name of st3fx train --data, as imagefolder, or your own "
            "loaders.py:make_loaders.  [default: the run's]",
        ),
        click.option("--data-path", type=FOLDER, metavar="TEXT", help="Folder of the data."),
        click.option("-j", "--workers", type=int, metavar="N", help="Processes that load data."),
        click.option("--channels", type=int, metavar="N", help="3 repeats grey images."),
        click.option("--image-size", type=int, metavar="N", help="Side of the images, in pixels."),
    )(command)


def trust_options(command: Command) -> Command:
    """Whose code runs."""
    return _all(
        click.option(
            "--trust",
            is_flag=True,
            help="Run the code that a bundle, a run or a recipe names, and remember that for its "
            "folder. Without it none runs but what you have named yourself before, unchanged.",
        ),
        click.option(
            "--model",
            metavar="SPEC",
            type=Spec(),
            help="Build the model of a bundle or a run from this SPEC, not from the one it names.",
        ),
    )(command)


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


def with_budgets(options: dict[str, Any]) -> dict[str, Any]:
    """``sparsity_of`` and ``sparsity``, where files stand in the place of targets.

    Raises:
        UsageError: For a file with other settings.
        TrainError: For a file that cannot be read.
    """
    texts, sparsity = [], options["sparsity"]
    for text in options["sparsity_of"]:
        if "=" in text:
            texts.append(text)
            continue
        values = read_toml(text)
        strange = [name for name in values if name not in ("sparsity", "sparsity_of")]
        of = from_dict(values, text)
        if strange or not of.sparsity_of:
            raise click.UsageError(
                f"--sparsity-of {text}: give GLOB=S, or a file that st3fx sensitivity --budget "
                "wrote"
            )
        texts += of.sparsity_of
        sparsity = of.sparsity if sparsity is None else sparsity
    return {"sparsity_of": tuple(texts), "sparsity": sparsity}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that the user said something about."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def _option(field: dataclasses.Field[Any], hint: Any) -> Callable[[Command], Command]:
    flags = list(field.metadata["flags"]) or [f"--{field.name.replace('_', '-')}"]
    names = [f for f in flags if f.startswith("--")]
    settings: dict[str, Any] = {"help": _help(field), "default": None, "cls": SectionedOption}
    if hint is bool:
        flags = ["/".join((name, f"--no-{name.removeprefix('--')}")) for name in names]
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
    if hint == tuple[float, ...]:
        return {"type": Numbers(), "metavar": "A,B"}
    if typing.get_origin(hint) is tuple:
        return {"multiple": True, "metavar": field.metadata["metavar"], "default": ()}
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
