"""``st3fx doctor``: what works on this machine, and what does not."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING

import click
from rich.text import Text

from st3fx.cli.options import json_option
from st3fx.cli.output import show
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import console, make_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from st3fx.doctor.probe import Diagnosis, Finding

MARKS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "failed": ("✗", "bold red")}
BROKEN = 1
"""Exit code when the main path does not work."""


@click.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Say what works on this machine and what does not.

    Every line was tried: a model is converted, trained, folded, exported, and run in ONNX Runtime;
    processor, accelerators, compilers and optional packages are looked for and used. What is absent
    or broken says what does not work without it, and what to do.

    Ends with exit code 0 if the main path works, and with 1 if it does not.
    """
    from st3fx.doctor.run import diagnose

    with Progress() as report:
        diagnosis = diagnose(progress=report)
    show(diagnosis, print_diagnosis, as_json=as_json)
    if not diagnosis.works:
        sys.exit(BROKEN)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The findings under their headings, then what they mean together."""
    out = console()
    width = max(len(finding.name) for finding in diagnosis.findings)
    out.print(Text(f"st3fx {diagnosis.version}", style="bold"))
    for section, findings in groupby(diagnosis.findings, key=lambda finding: finding.section):
        out.print(Text(f"\n{section}", style="bold"))
        rows: list[tuple[Text | str, ...]] = []
        for finding in findings:
            mark, style = MARKS[finding.status]
            rows.append((Text(f" {mark}", style=style), finding.name, finding.detail))
            if finding.consequence:
                rows.append(("", "", Text(_meaning(finding), style="dim")))
        out.print(make_grid(rows, padding=1, width=width))
    out.print(Text(f"\n{verdict(diagnosis)}"), soft_wrap=True)


def _meaning(finding: Finding) -> str:
    advice = f": {finding.advice}" if finding.advice else ""
    return f"→ {finding.consequence}{advice}"


def verdict(diagnosis: Diagnosis) -> str:
    """One sentence: whether the main path works, and what is broken or absent beside it."""
    broken = [item for item in diagnosis.findings if item.required and item.status != "ok"]
    took = f"tried in {diagnosis.seconds:.0f} s"
    if broken:
        return f"the main path does not work: {_names(broken)}; {took}"
    failed = [item for item in diagnosis.findings if item.status == "failed"]
    absent = [item for item in diagnosis.findings if item.status == "absent"]
    parts = ["the main path works: convert, train, fold, export, analyze"]
    parts += [f"broken: {_names(failed)}"] if failed else []
    parts += [f"absent: {_names(absent)}"] if absent else []
    return "; ".join([*parts, took])


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(finding.name for finding in findings)
