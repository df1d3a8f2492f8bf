"""A run as a page: the facade's verb that reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from st3fx.report.page import GENERATOR, make_page, make_sections
from st3fx.report.png import to_png
from st3fx.report.result import ReportResult
from st3fx.report.section import Section
from st3fx.report.write import check_folder, check_target, write_all
from st3fx.training.folder import RunFolder
from st3fx.verbs.evidence import gather, is_run
from st3fx.version import VERSION


def write_report(
    source: str | Path,
    output: str | Path | None = None,
    *,
    bench: str | Path | None = None,
    pictures: str | Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ReportResult:
    """Write what is known about a run as one HTML file that needs nothing else.

    Args:
        source: The folder of a run, which may be under way still, or a bundle.
        output: The page; by default ``report.html`` in the run, or ``NAME.report.html`` beside the
            bundle. An earlier report is replaced.
        bench: What ``st3fx bench -x`` wrote; by default ``bench.json`` in the run, if it is there.
        pictures: A folder for the same charts as PNG files; it is made.
        force: Replace files that no report wrote.
        progress: Called with the name of each stage as it begins.

    Returns:
        What was written, and which sections have something to show.

    Raises:
        ReportError: When there is neither run nor bundle, or a file cannot be written.
        BenchError: When the benchmark cannot be read.
        TrainError: When the run's settings cannot be read.
        BundleError: When the bundle is damaged, or its model was changed since.
    """
    report = progress or _silent
    source = Path(source)
    target = Path(output) if output else default_output(source)
    folder = None if pictures is None else Path(pictures)
    # Now rather than after minutes of work.
    check_target(target, force=force)
    if folder is not None:
        check_folder(folder)
    facts = gather(source, bench, report)
    report("draw")
    sections = make_sections(facts)
    page = make_page(facts, sections).encode()
    files = {} if folder is None else _pictures(folder, sections)
    for path in files:
        if path.exists():
            check_target(path, force=force)
    write_all({**files, target: page})
    missing = {section.key: section.missing.replace("`", "") for section in sections}
    return ReportResult(target, len(page), facts.name, missing, tuple(files))


def default_output(source: Path) -> Path:
    """Where the report of a run or a bundle is written."""
    if is_run(source):
        return RunFolder(source).report
    # A bundle's folder holds a bundle and nothing else.
    resolved = source.resolve()
    return resolved.with_name(f"{resolved.stem}.report.html")


def _pictures(folder: Path, sections: tuple[Section, ...]) -> dict[Path, bytes]:
    charts = (chart for section in sections for chart in section.charts)
    return {folder / f"{chart.key}.png": to_png(chart, f"{GENERATOR} {VERSION}")
            for chart in charts}  # fmt: skip


def _silent(stage: str) -> None:
    """No progress display."""
