"""From defaults, recipe, file and flags to settings; each of these goes over the one before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from st3fx.core.messages import suggest
from st3fx.errors import TrainError
from st3fx.training.folder import RunFolder
from st3fx.training.recipes import RECIPES
from st3fx.training.settings import FREE, Settings, from_dict
from st3fx.training.toml_text import read_toml


def resolve(flags: Mapping[str, Any], config: str | Path | None = None) -> Settings:
    """The settings of a new run.

    Args:
        flags: What was said on the command line, by the settings' names.
        config: A TOML file.

    Raises:
        TrainError: For an unknown recipe, an unknown setting in the file, or a value that does not
            fit.
    """
    written = read_toml(config) if config is not None else {}
    recipe = flags.get("recipe", written.get("recipe"))
    if recipe is not None and recipe not in RECIPES:
        close = suggest(str(recipe), list(RECIPES)) or f"; there are {', '.join(RECIPES)}"
        raise TrainError(f"no recipe {recipe!r}{close}")
    if config is not None:
        from_dict({"spec": "", **_basis(recipe), **written}, str(config))
    return from_dict({**_basis(recipe), **written, **flags}, "settings")


def resume(folder: RunFolder, flags: Mapping[str, Any]) -> Settings:
    """The settings of a run that goes on.

    Args:
        folder: Of the run.
        flags: What was said on the command line: only what the weights do not depend on may differ.

    Raises:
        TrainError: When a flag contradicts the run, or its settings cannot be read.
    """
    settings = from_dict(read_toml(folder.settings), str(folder.settings))
    given = from_dict({**settings.to_dict(), **flags}, "settings")
    for name in flags:
        then, now = getattr(settings, name), getattr(given, name)
        if name not in FREE and then != now:
            raise TrainError(
                f"{folder.path} was started with {name} = {then!r}, which --resume cannot change "
                f"to {now!r}: leave the flag out, or start anew in another --output-dir"
            )
    return given


def _basis(recipe: str | None) -> dict[str, Any]:
    return RECIPES[recipe] if recipe is not None else {}
