"""Pages and pictures on the disk: whole or not at all, and nothing of others replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from st3fx.errors import ReportError
from st3fx.files.atomic import replace_file
from st3fx.report.page import GENERATOR

_HEAD = 512
"""Bytes from the start in which a file says what wrote it."""


def check_target(path: Path, *, force: bool) -> Path:
    """Fail early if a file cannot be written. Writes nothing.

    What an earlier report wrote is replaced; anything else only by ``force``.

    Raises:
        ReportError: When something else is there, or no folder is.
    """
    if path.is_dir():
        raise ReportError(f"{path} is a folder: name the file to write")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not force and not _ours(path):
        raise ReportError(
            f"{path} exists and is no report: choose another file, or replace it by --force"
        )
    return path


def check_folder(path: Path) -> Path:
    """Fail early if pictures cannot be written into a folder, which need not be there yet.

    Raises:
        ReportError: When it is a file, or the folder above it is missing.
    """
    if path.exists() and not path.is_dir():
        raise ReportError(f"{path} is a file: name a folder for the pictures")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write into {path}: there is no folder {path.parent}")
    return path


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write files, each in one step.

    Raises:
        ReportError: When one cannot be written.
    """
    for path, content in files.items():
        try:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
        except OSError as error:
            raise ReportError(f"cannot write {path}: {error.strerror or error}") from error


def _ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(_HEAD)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
