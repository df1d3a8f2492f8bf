"""Runs campaigns in their long form and prints a table: ``python -m tests.campaigns --help``."""

from __future__ import annotations

import datetime as dt
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import click

from benchmarks.record import environment
from tests.campaigns.attempt import ROOT, Failure, run
from tests.campaigns.table import CAMPAIGNS, Campaign

PAGE = ROOT / "docs" / "campaigns.md"


@dataclass
class Row:
    """What came of a campaign."""

    campaign: Campaign
    cases: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its row of the table."""
        campaign, held = self.campaign, self.cases - len(self.failures)
        counts = f"{held:,} of {self.cases:,} | {self.seconds / 60:.1f} min"
        return f"| {campaign.what} | {campaign.holds} | {counts} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice([c.name for c in CAMPAIGNS]))
@click.option("--cases", type=click.IntRange(1), help="Of each campaign, instead of its long form.")
@click.option("--from", "first", type=int, default=0, show_default=True, help="The first seed.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
@click.option("--minutes", type=float, help="After which no further case begins.")
@click.option("--write", is_flag=True, help="Put the table into docs/campaigns.md.")
def main(
    only: tuple[str, ...],
    cases: int | None,
    first: int,
    jobs: int,
    minutes: float | None,
    *,
    write: bool,
) -> None:
    """Try what must hold, many times over. What did not hold ends with exit code 1."""
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    rows = []
    for campaign in CAMPAIGNS:
        if not only or campaign.name in only:
            rows.append(_run(campaign, first, cases or campaign.long, jobs, until))
            click.echo(rows[-1].text)
            if write:  # after each one: what was seen is not lost with what comes later
                PAGE.write_text(_page(rows, first), encoding="utf-8")
    if write:
        click.echo(f"wrote {PAGE.relative_to(ROOT)}")
    sys.exit(any(row.failures for row in rows))


def _run(campaign: Campaign, first: int, cases: int, jobs: int, until: float) -> Row:
    row, began = Row(campaign), time.monotonic()
    for result in run(campaign, range(first, first + cases), jobs, until):
        row.cases += 1
        if result is not None:
            row.failures.append(result)
            click.echo(f"{campaign.name}, seed {result.seed}: {result.seen}", err=True)
    row.seconds = time.monotonic() - began
    return row


def _page(rows: list[Row], first: int) -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    machine = environment()
    table = "\n".join(row.text for row in rows)
    failed = "\n".join(
        f"* {row.campaign.name}, seed {failure.seed}: {failure.seen}"
        for row in rows
        for failure in row.failures
    )
    return (
        f"""# Campaigns

Many seeded attempts to make st3fx lose, trust, hang on or silently take a thing. They are in
`tests/campaigns/`; a seed is one attempt, and the tests of every change run a short form. This
table was written by `python -m tests.campaigns --write` on {dt.datetime.now(tz=dt.UTC):%Y-%m-%d},
at commit {commit.strip()}, with seeds from {first}; {machine["cpu"]}, torch {machine["torch"]},
Python {machine["python"]}.

| tried | must hold | held | took |
| --- | --- | --- | --- |
{table}

{failed}
""".rstrip()
        + "\n"
    )


if __name__ == "__main__":
    main()
