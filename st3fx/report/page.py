"""The page: one file, with its style and its script in it and nothing fetched from anywhere.

It is written whole or not at all, as pictures are, and replaces nothing that no report wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from st3fx.errors import ReportError
from st3fx.files.atomic import followed, replace_files
from st3fx.report import model_sections, run_sections
from st3fx.report.chart import Chart, FlowChart
from st3fx.report.facts import Facts
from st3fx.report.flow import draw_flow
from st3fx.report.markup import join, seen, tag
from st3fx.report.section import Section
from st3fx.report.sensitivity_sections import sensitivity_section
from st3fx.report.svg import draw
from st3fx.version import VERSION

STORY: tuple[Callable[[Facts], Section | None], ...] = (
    run_sections.training,
    model_sections.zeros,
    model_sections.compute,
    model_sections.sites,
    sensitivity_section,
    model_sections.dataflow,
    run_sections.latency,
    run_sections.sizes,
    run_sections.reproduce,
)
"""The sections in the order in which they are told; ``None`` where one has no place."""

GENERATOR = "st3fx report"
"""Stands at the beginning of what ``st3fx report`` wrote, which it may replace."""


def make_sections(facts: Facts) -> tuple[Section, ...]:
    """All sections, those without data too."""
    return tuple(section for make in STORY if (section := make(facts)) is not None)


def make_page(facts: Facts, sections: Sequence[Section]) -> str:
    """The HTML document."""
    return make_document(
        kind="Sparse training report", title=f"{facts.name}: sparse training report",
        name=facts.name, about=run_sections.about(facts), headline=run_sections.headline(facts),
        sections=sections, generator=GENERATOR,
    )  # fmt: skip


def make_document(
    *, kind: str, title: str, name: str, about: str, headline: Sequence[tuple[str, str, str]],
    sections: Sequence[Section], generator: str,
) -> str:  # fmt: skip
    """An HTML document of sections.

    Args:
        kind: What sort of page it is, above its name.
        title: In the browser's tab.
        name: Its heading.
        about: A sentence under it.
        headline: The figures that matter: name, value, and what stands beside it.
        sections: In order.
        generator: The command that writes it, by which it knows its own page again.
    """
    page = _environment().get_template("page.html")
    return page.render(
        kind=kind, title=title, name=name, about=about, headline=headline, sections=sections,
        generator=f"{generator} {VERSION}", version=VERSION,
    )  # fmt: skip


def _environment() -> Environment:
    """Jinja2 as the page needs it: whatever is no markup is escaped, and can be seen."""
    environment = Environment(
        loader=PackageLoader("st3fx.report", "."), autoescape=True, undefined=StrictUndefined,
        keep_trailing_newline=True, finalize=seen,
    )  # fmt: skip
    environment.filters |= {"drawn": _drawn, "with_code": with_code}
    return environment


def _drawn(chart: Chart) -> Markup:
    return draw_flow(chart) if isinstance(chart, FlowChart) else draw(chart)


def with_code(text: str) -> Markup:
    """Text in which what stands between backticks is set as code."""
    parts = text.split("`")
    return join(tag("code", part) if index % 2 else part for index, part in enumerate(parts))


_HEAD = 512
"""Bytes from the start in which a file says what wrote it."""


def check_target(
    path: Path, *, force: bool, generator: str = GENERATOR, noun: str = "report"
) -> Path:
    """Fail early if a file cannot be written. Writes nothing.

    What the same command wrote earlier is replaced; anything else only by ``force``.

    Args:
        path: The file.
        force: Replace whatever file is there.
        generator: The command that writes it.
        noun: What it writes, for the message.

    Raises:
        ReportError: When something else is there, or no folder is.
    """
    if path.is_dir():
        raise ReportError(f"{path} is a folder: name the file to write")
    if path.exists() and not path.is_file():
        raise ReportError(f"{path} is a device or a pipe: name the file to write")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not force and not _ours(path, generator):
        raise ReportError(
            f"{path} exists and is no {noun}: choose another file, or replace it by --force"
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
    """Write files; of those in one folder all or none.

    Raises:
        ReportError: When one cannot be written.
    """
    folders: dict[Path, dict[str, bytes]] = {}
    for path, content in files.items():
        target = followed(path)
        folders.setdefault(target.parent, {})[target.name] = content
    for folder, contents in folders.items():
        try:
            replace_files(folder, contents)
        except OSError as error:
            last = folder / list(contents)[-1]
            raise ReportError(f"cannot write {last}: {error.strerror or error}") from error


def _ours(path: Path, generator: str) -> bool:
    try:
        with path.open("rb") as file:
            return generator.encode() in file.read(_HEAD)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
