"""The page: one file, with its style and its script in it and nothing fetched from anywhere.

Pages and pictures on the disk: whole or not at all, and nothing of others replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from st3fx.errors import ReportError
from st3fx.files.atomic import replace_file
from st3fx.report import model_sections, run_sections
from st3fx.report.facts import Facts
from st3fx.report.markup import Markup, join, tag
from st3fx.report.run_sections import headline
from st3fx.report.section import Section
from st3fx.version import VERSION

STORY = (
    run_sections.training,
    model_sections.zeros,
    model_sections.compute,
    model_sections.sites,
    model_sections.dataflow,
    run_sections.latency,
    run_sections.sizes,
    run_sections.reproduce,
)
"""The sections in the order in which they are told."""

GENERATOR = "st3fx report"
"""Stands at the beginning of what ``st3fx report`` wrote, which it may replace."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever would be fetched."""


def make_sections(facts: Facts) -> tuple[Section, ...]:
    """All sections, those without data too."""
    return tuple(make(facts) for make in STORY)


def make_page(facts: Facts, sections: Sequence[Section]) -> str:
    """The HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="generator", content=f"{GENERATOR} {VERSION}"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{facts.name}: sparse training report"),
        tag("style", _asset("page.css")),
    )
    links = (tag("a", section.title, href=f"#{section.key}") for section in sections)
    body = tag(
        "body",
        headline(facts),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(section.to_html() for section in sections)),
        tag("footer", f"Written by st3fx {VERSION}."),
        tag("script", _asset("page.js")),
    )
    return join([Markup("<!DOCTYPE html>\n"), tag("html", head, body, lang="en"), Markup("\n")])


def _asset(name: str) -> Markup:
    return Markup((resources.files("st3fx.report") / name).read_text(encoding="utf-8"))


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
