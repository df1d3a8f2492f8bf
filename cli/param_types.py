"""Types of arguments that a shell can complete without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from st3fx.cli.spec_names import LIBRARIES, model_names

DATASETS = ("fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "imagefolder")
"""Keys of ``st3fx.data.DATASETS``, which takes seconds to import; a test holds them equal."""


class Text(click.ParamType):  # type: ignore[type-arg] # generic in newer releases of click
    """Any text, with words and files that a shell proposes."""

    name = "text"

    def __init__(self, words: Sequence[str] = (), suffixes: Sequence[str] = ()) -> None:
        """Propose ``words``, folders, and files that end in ``suffixes``."""
        self._words, self._suffixes = tuple(words), tuple(suffixes)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Words that begin so, then files and folders."""
        words = [word for word in self._words if word.startswith(incomplete)]
        return [CompletionItem(value) for value in (*words, *files(incomplete, self._suffixes))]


class Spec(Text):
    """A SPEC: ``library:NAME``, a Python file, a bundle, or another file that holds a model."""

    def __init__(self, suffixes: Sequence[str] = (".py", ".onnx")) -> None:
        """Propose files that end in ``suffixes`` too."""
        super().__init__([f"{library}:" for library in LIBRARIES], suffixes)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[Any]]:
        """Names of the library's models, once it is named; before that libraries and files."""
        library, colon, name = incomplete.partition(":")
        if not colon or library not in LIBRARIES:
            return super().shell_complete(ctx, param, incomplete)
        # Both are spellings of one name.
        wanted = name.replace("-", "_") if library == "st3fx" else name
        names = (found for found in model_names(library) if found.startswith(wanted))
        return [CompletionItem(f"{library}:{found}") for found in names]


def files(incomplete: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Folders, with a slash, and files that end in ``suffixes``, as far as they are typed."""
    parent, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(parent + slash or ".").expanduser().iterdir())
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if entry.name.startswith(start) and not hidden:
            if entry.is_dir():
                yield f"{parent}{slash}{entry.name}/"
            elif entry.name.endswith(tuple(suffixes)):
                yield f"{parent}{slash}{entry.name}"


WEIGHTS = Text(suffixes=(".safetensors", ".st3w", ".pt", ".pth", ".bin", ".ckpt"))
DATA = Text(DATASETS, (".py",))
SETTINGS = Text(suffixes=(".toml",))
ONNX = Text(suffixes=(".onnx",))
FOLDER = Text()
