"""What a bundle says about itself: how its model was converted, and what its files must be."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from st3fx.errors import BundleError
from st3fx.files.reading import Count, Format, sealed
from st3fx.plan.settings import ConversionSettings
from st3fx.plan.sites import SparsityPlan
from st3fx.version import VERSION

FORMAT = "st3fx-bundle"
FORMAT_VERSION = 2
"""Raised when a bundle of this version could not be read by the version before.

The second has bundles without weights; one with weights is still written as of the first.
"""

FILE = Format(BundleError, "convert the model again")

EXAMPLE_INPUTS = "example_inputs()"
"""Stands in the manifest for inputs that the model's own file gives."""


def current_versions() -> dict[str, str]:
    """Versions of what a model's numbers depend on."""
    packages = {name: metadata.version(name) for name in ("torch", "torchvision")}
    return {"st3fx": VERSION, **packages, "python": platform.python_version()}


@dataclass(frozen=True)
class Source:
    """The file that the model was built from, as it was then."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Recipe(ConversionSettings):
    """All that is needed to convert the same model the same way again, besides the settings.

    Attributes:
        spec: The SPEC as the user wrote it.
        method: The method with its settings, as ``st3fx.methods.to_dict`` gives it.
        inputs: ``SHAPE[:dtype]`` texts; ``None``: those of ``example_inputs()`` beside the model.
        total_steps: Optimizer steps of the training to come, if known.
        seed: For building the model and for the values of the inputs.
        num_classes: Outputs that a library model was built with; ``None``: its default.
        in_channels: Channels of its input.
        image_size: Side of its input in pixels.
        update_every: Optimizer steps between two searches for the threshold.
        source: The file that was run; ``None`` for library models.
    """

    spec: str
    method: dict[str, Any]
    inputs: tuple[str, ...] | None = None
    total_steps: int | None = None
    seed: int = 0
    num_classes: int | None = None
    in_channels: int | None = None
    image_size: int | None = None
    update_every: int = 1
    source: Source | None = None


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Absent:
    """A tensor without values: of a model that was converted on the meta device.

    Attributes:
        dtype: As torch prints it, without ``torch.``.
        shape: Its sizes.
    """

    dtype: str
    shape: tuple[Count, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        recipe: How the model was converted.
        plan: What the conversion does to it.
        files: The bundle's other files by name.
        aliases: State-dict key -> key that the same tensor is stored under (tied parameters).
        versions: Of st3fx, torch, torchvision and Python when it was written.
        absent: State-dict key -> what is known of a tensor that has no values yet.
    """

    recipe: Recipe
    plan: SparsityPlan
    files: dict[str, FileInfo]
    aliases: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=current_versions)
    absent: dict[str, Absent] = field(default_factory=dict)

    @property
    def format_version(self) -> int:
        """The first version of the format that reads it."""
        return FORMAT_VERSION if self.absent else 1

    def to_json(self, directory: Path) -> str:
        """The text of ``manifest.json`` for a bundle at ``directory`` (absolute)."""
        recipe = dataclasses.asdict(self.recipe)
        recipe["inputs"] = EXAMPLE_INPUTS if recipe["inputs"] is None else recipe["inputs"]
        if self.recipe.source is not None:
            path = self.recipe.source.path
            recipe["source"] = {
                # Relative first: a project that moves with its bundles still finds its file.
                "relative": os.path.relpath(path, directory),
                "absolute": str(path),
                "sha256": self.recipe.source.sha256,
            }
        body = {
            "format": FORMAT,
            "format_version": self.format_version,
            "versions": self.versions,
            "recipe": recipe,
            "plan": self.plan.to_dict(),
            "files": {name: dataclasses.asdict(info) for name, info in self.files.items()},
            "aliases": self.aliases,
        }
        if self.absent:
            body["absent"] = {key: dataclasses.asdict(own) for key, own in self.absent.items()}
        return json.dumps(sealed(body), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, directory: Path) -> Manifest:
        """The inverse of :meth:`to_json`.

        Raises:
            BundleError: When the text is damaged, edited, or from a newer version.
        """
        where = directory / "manifest.json"
        body = _checked(text, where)
        written = FILE.build(body, _Written, where)
        return cls(
            recipe=_recipe(written.recipe, directory, where),
            plan=written.plan,
            files=written.files,
            aliases=written.aliases,
            versions=written.versions,
            absent=written.absent,
        )


@dataclass(frozen=True)
class _Written:
    """A manifest as it is in its file; of the recipe, paths and inputs are put otherwise there."""

    format: str
    format_version: int
    versions: dict[str, str]
    recipe: dict[str, Any]
    plan: SparsityPlan
    files: dict[str, FileInfo]
    aliases: dict[str, str]
    absent: dict[str, Absent] = field(default_factory=dict)


@dataclass(frozen=True)
class _WrittenSource:
    """A source as a recipe has it in its file."""

    relative: str
    absolute: str
    sha256: str


def _checked(text: str | bytes, where: Path) -> dict[str, Any]:
    """The JSON object in ``text``, known to be of a version that can be read, and unedited."""
    body = FILE.json(text, where)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BundleError(f"{where} is not the manifest of a st3fx bundle")
    version = body.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        written = body.get("versions", {})
        by = written.get("st3fx", "?") if isinstance(written, dict) else "?"
        raise BundleError(
            f"{where} has format {version!r}, written by st3fx {by}; this is st3fx {VERSION}, "
            f"which reads up to {FORMAT_VERSION}: upgrade st3fx"
        )
    return FILE.unsealed(body, where)


def _recipe(data: dict[str, Any], directory: Path, where: Path) -> Recipe:
    inputs, source = data.get("inputs"), data.get("source")
    plain = {key: value for key, value in data.items() if key != "source"}
    plain["inputs"] = None if inputs == EXAMPLE_INPUTS else inputs
    recipe = FILE.build(plain, Recipe, where, "recipe")
    for name in ("include", "exclude"):
        FILE.build(data.get(name, []), tuple[str, ...], where, f"recipe.{name}")
    if source is None:
        return recipe
    written = FILE.build(source, _WrittenSource, where, "recipe.source")
    paths = ((directory / written.relative).resolve(), Path(written.absolute))
    found = Source(_find(paths, written.sha256), written.sha256)
    return dataclasses.replace(recipe, source=found)


def _find(paths: tuple[Path, ...], sha256: str) -> Path:
    """The path whose content has that hash; else one that exists; else the last."""
    there = [path for path in paths if path.is_file()]
    for path in there:
        with contextlib.suppress(OSError), path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return path
    return there[0] if there else paths[-1]
