"""The commands that make a run again, with the options that differ from the defaults."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from st3fx.files.manifest import Recipe
from st3fx.training.settings import Settings


def train_command(settings: Settings) -> str:
    """``st3fx train SPEC --epochs 4 -o runs/resnet20``."""
    words = ["st3fx", "train", settings.spec]
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if field.name != "spec" and value not in (field.default, None):
            words += _option(_flag(field), value)
    return shlex.join(words)


def convert_command(recipe: Recipe, bundle: Path) -> str:
    """``st3fx convert torchvision:resnet50 --input 1x3x224x224 -o resnet50.st3fx``."""
    words = ["st3fx", "convert", recipe.spec]
    for text in recipe.inputs or ():
        words += ["--input", text]
    words += ["--method", _method(recipe.method)]
    for name in ("sparsity",):
        if name in recipe.method:
            words += [f"--{name}", f"{recipe.method[name]:g}"]
    for name in ("total_steps", "include", "exclude", "skip_depthwise", "skip_first", "skip_last",
                 "include_tied", "seed"):  # fmt: skip
        value = getattr(recipe, name)
        if value not in (None, (), False, 0):
            words += _option(f"--{name.replace('_', '-')}", value)
    if not recipe.keep_zeros:
        words += _option("--keep-zeros", False)
    return shlex.join([*words, "-o", str(bundle)])


def _method(method: dict[str, Any]) -> str:
    """As ``--method`` spells it."""
    return "st3-sigma" if method.get("normalize") == "sigma" else str(method["name"])


def _flag(field: dataclasses.Field[Any]) -> str:
    """The first long spelling."""
    flags = [flag for flag in field.metadata["flags"] if flag.startswith("--")]
    return flags[0] if flags else f"--{field.name.replace('_', '-')}"


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, tuple):
        numbers = all(isinstance(item, int | float) for item in value)
        if numbers:
            return [flag, ",".join(f"{item:g}" for item in value)]
        return [word for item in value for word in (flag, str(item))]
    return [flag, str(value)]
