"""Bundles: folders that hold a converted model, its plan and how it was made.

    manifest.json        versions, recipe, plan; size and hash of the other files; its own hash
    model.safetensors    the state dict, tied tensors once
    graph.txt            the graphs, for people

A bundle is written beside its destination and renamed, so that no moment shows half of one. Other
files that lie in its folder are the user's, and stay when it is replaced.

The graphs of a converted model as text that a person can read.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from st3fx.errors import BundleError, StrangeFileWarning, describe, few, quoted
from st3fx.files.atomic import check_place, put_in_place, recover, temporary_neighbour
from st3fx.files.manifest import FILE, Absent, FileInfo, Manifest, Recipe, Source
from st3fx.files.ours import BUNDLE, is_bundle
from st3fx.files.tensor_file import load_state, save_state
from st3fx.modules.marks import ISLAND, MODE
from st3fx.plan.sites import SparsityPlan
from st3fx.whose import callers_level


def print_graphs(islands: Iterable[Any]) -> str:
    """The readable code of every graph, with a header line each.

    Args:
        islands: fx graph modules, with the name of their module and whether they are its train
            graph, its eval graph or both.
    """
    parts = []
    for graph in islands:
        name, mode = getattr(graph, ISLAND) or "(the model)", getattr(graph, MODE)
        code = graph.print_readable(print_output=False)
        parts.append(f"# island {name}, mode {mode}\n{code.strip()}\n")
    return "\n\n".join(parts) or "# no module was captured as a graph\n"


MANIFEST, WEIGHTS, GRAPH = BUNDLE


@dataclass(frozen=True)
class Bundle:
    """A bundle's content, checked against its hashes.

    Attributes:
        directory: Where it was read from, absolute.
        manifest: How it was made and what it does.
        state_dict: Of the converted model; full name -> tensor on the CPU, or on the meta device
            where the model was converted without values.
        graph_text: The printed graphs.
    """

    directory: Path
    manifest: Manifest
    state_dict: dict[str, Tensor]
    graph_text: str

    def require_weights(self) -> None:
        """Fail if the model was converted without values.

        Raises:
            BundleError: Then; it says where weights can come from.
        """
        if self.manifest.absent:
            where, spec = quoted(self.directory), quoted(self.manifest.recipe.spec)
            raise BundleError(
                f"{self.directory} was converted on the meta device and has no weights: "
                f"st3fx fold {where} --weights INDEX --sparsity S folds those of a checkpoint, "
                f"st3fx convert {spec} --weights INDEX makes a bundle with them"
            )

    def check_source(self) -> None:
        """Fail if the file that the model is built from is not the one of the conversion.

        Raises:
            BundleError: When it is missing or was changed since.
        """
        source = self.manifest.recipe.source
        if source is None:
            return
        if not source.path.is_file():
            raise BundleError(
                f"{self.directory} was made from {source.path}, which is missing: put it back, "
                "or convert the model again"
            )
        if not source_holds(source):
            raise BundleError(
                f"{source.path} was changed since {self.directory} was made from it: undo the "
                "change, or convert the model again"
            )


def check_target(directory: str | Path, *, force: bool = False) -> Path:
    """Fail early if a bundle cannot be written to ``directory``. Writes nothing.

    Returns:
        The absolute path, symbolic links resolved: what is replaced is what they point at.

    Raises:
        BundleError: When something is there and ``force`` is not given, or it is no bundle.
    """
    target = Path(directory).resolve()
    recover(target)
    if not target.exists():
        check_place(target, BundleError)
        return target
    if not force:
        raise BundleError(f"{directory} exists: choose another folder, or replace it by --force")
    if not is_bundle(target):
        raise BundleError(f"{directory} is not a bundle, and --force replaces only bundles")
    return target


def write_bundle(
    directory: str | Path,
    *,
    recipe: Recipe,
    plan: SparsityPlan,
    state_dict: Mapping[str, Any],
    graph_text: str,
    force: bool = False,
) -> Path:
    """Write a bundle, whole or not at all.

    Args:
        directory: The folder to make; folders above it are made too.
        recipe: How the model was converted.
        plan: What the conversion does.
        state_dict: Of the converted model. Of what is on the meta device type and shape are
            noted, and which tensors are one.
        graph_text: Its printed graphs.
        force: Whether a bundle that is already there is replaced.

    Returns:
        The absolute path of the bundle.

    Raises:
        BundleError: As :func:`check_target`, and when the files cannot be written. What was there
            before is there still.
    """
    target = check_target(directory, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_neighbour(target) as folder:
            absent, tied = _absent(state_dict)
            present = {key: value for key, value in state_dict.items() if key not in absent}
            aliases = tied | save_state(present, folder / WEIGHTS)
            (folder / GRAPH).write_text(graph_text, encoding="utf-8")
            # safetensors makes its files readable by their owner alone.
            shutil.copymode(folder / GRAPH, folder / WEIGHTS)
            files = {
                name: FileInfo((folder / name).stat().st_size, _hash(folder / name))
                for name in (WEIGHTS, GRAPH)
            }
            text = Manifest(recipe, plan, files, aliases, absent=absent).to_json(target)
            (folder / MANIFEST).write_text(text, encoding="utf-8")
            put_in_place(folder, target, BUNDLE)
    except OSError as error:
        raise BundleError(f"cannot write {directory}: {error.strerror or error}") from error
    return target


def read_bundle(directory: str | Path) -> Bundle:
    """Read a bundle and check every file of it.

    Raises:
        BundleError: When it is no bundle, truncated, edited, or from a newer version.
    """
    folder = Path(directory).resolve()
    manifest = checked_manifest(directory)
    try:
        text = (folder / GRAPH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {folder / GRAPH}: {describe(error)}") from error
    absent, aliases = manifest.absent, manifest.aliases
    state = load_state(
        folder / WEIGHTS, {key: name for key, name in aliases.items() if key not in absent}
    )
    return Bundle(folder, manifest, state | _without_values(absent, aliases, folder), text)


def _absent(state: Mapping[str, Any]) -> tuple[dict[str, Absent], dict[str, str]]:
    """What is known of tensors on the meta device, and those that are another under a second name.

    Args:
        state: With the parameters themselves: such tensors have no memory to be known by.
    """
    found: dict[str, Absent] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.is_meta:
            found[key] = Absent(str(value.dtype).removeprefix("torch."), tuple(value.shape))
            name = first.setdefault(id(value), key)
            if name != key:
                aliases[key] = name
    return found, aliases


def _without_values(
    absent: Mapping[str, Absent], aliases: Mapping[str, str], folder: Path
) -> dict[str, Tensor]:
    """The inverse of :func:`_absent`.

    Raises:
        BundleError: For a type that torch has not.
    """
    state: dict[str, Tensor] = {}
    for key, own in absent.items():
        dtype = getattr(torch, own.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise BundleError(f"{folder / MANIFEST}: {key} is of the type {own.dtype[:40]!r}")
        other = state.get(aliases.get(key, ""))
        state[key] = torch.empty(own.shape, dtype=dtype, device="meta") if other is None else other
    return state


def checked_manifest(directory: str | Path) -> Manifest:
    """What a bundle says of itself, after a check of every file of it; no weight is kept.

    Raises:
        BundleError: When it is no bundle, truncated, edited, or from a newer version.
    """
    folder = Path(directory).resolve()
    recover(folder)
    if not folder.is_dir():
        raise BundleError(f"{directory} is not a bundle: no such folder")
    if not (folder / MANIFEST).is_file():
        inside = Path(directory) / "model.st3fx"  # as st3fx train calls it
        if (inside / MANIFEST).is_file():
            raise BundleError(f"{directory} is no bundle but has one: give {quoted(inside)}")
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}")
    _notice_others(folder)
    manifest = Manifest.from_json(FILE.content(folder / MANIFEST), folder)
    for name in (WEIGHTS, GRAPH):
        if name not in manifest.files:
            raise BundleError(f"{folder / MANIFEST} does not list {name}: convert the model again")
        _check_file(folder / name, manifest.files[name])
    return manifest


def source_holds(source: Source) -> bool:
    """Whether the file that a model was built from, which is there, is as it was then."""
    return _hash(source.path) == source.sha256


def _notice_others(folder: Path) -> None:
    """Say which files are none of a bundle's; a word to the reader may lie there."""
    strange = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in (MANIFEST, WEIGHTS, GRAPH)
        and not entry.name.upper().startswith(("README", "LICENSE", "NOTICE", ".DS_STORE"))
        and entry.suffix not in (".md", ".txt")
    )
    if strange:
        warnings.warn(
            f"{folder} holds {few(map(repr, strange))}, which are no files of a bundle: they are "
            "not read, and nothing in them runs by itself",
            StrangeFileWarning,
            stacklevel=callers_level(),
        )


def _check_file(path: Path, info: FileInfo) -> None:
    if not path.is_file():
        raise BundleError(f"the bundle is truncated: {path} is missing")
    size = path.stat().st_size
    if size < info.bytes:
        raise BundleError(f"the bundle is truncated: {path} has {size} of {info.bytes} bytes")
    if size != info.bytes or _hash(path) != info.sha256:
        raise BundleError(f"{path} was edited after it was written: convert the model again")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
