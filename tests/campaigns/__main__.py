"""Runs campaigns in their long form and prints a table: ``python -m tests.campaigns --help``.

What was seen is kept in ``results.json`` beside this file, a campaign's newest run each, and the
page in the documentation is made of that.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.record import environment
from tests.campaigns.attempt import ROOT, run
from tests.campaigns.table import CAMPAIGNS, Campaign

PAGE = ROOT / "docs" / "campaigns.md"
RESULTS = Path(__file__).with_name("results.json")


@dataclass
class Seen:
    """A case that did not hold.

    Attributes:
        seed: Of the case.
        text: What was seen.
        mended: The commit at which it held, tried again; empty where it does not.
    """

    seed: int
    text: str
    mended: str = ""


@dataclass
class Row:
    """What came of a campaign: at which commit, on which day, with which seeds."""

    commit: str
    date: str
    first: int
    cases: int = 0
    minutes: float = 0.0
    failures: list[Seen] = field(default_factory=list)

    def text(self, campaign: Campaign) -> str:
        """Its row of the table."""
        held = f"{self.cases - len(self.failures):,} of {self.cases:,}"
        mended = sum(bool(seen.mended) for seen in self.failures)
        goal = "" if self.cases >= campaign.long else f"; the long form has {campaign.long:,}"
        again = f", {mended} more since mended" if mended else ""
        cells = (campaign.what, campaign.holds, f"{held}{again}{goal}", self.commit,
                 f"{self.minutes:.1f} min")  # fmt: skip
        return f"| {' | '.join(cells)} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice([c.name for c in CAMPAIGNS]))
@click.option("--cases", type=click.IntRange(1), help="Of each campaign, instead of its long form.")
@click.option("--from", "first", type=int, default=0, show_default=True, help="The first seed.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True)
@click.option("--minutes", type=float, help="After which no further case begins.")
@click.option("--again", is_flag=True, help="Try only the cases that did not hold last time.")
@click.option("--write", is_flag=True, help="Keep the results, and write docs/campaigns.md.")
def main(
    only: tuple[str, ...],
    cases: int | None,
    first: int,
    jobs: int,
    minutes: float | None,
    *,
    again: bool,
    write: bool,
) -> None:
    """Try what must hold, many times over. What did not hold ends with exit code 1."""
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    known, failed = _read(), False
    for campaign in CAMPAIGNS:
        if only and campaign.name not in only:
            continue
        if again:
            row = known.get(campaign.name)
            if row is None or not row.failures:
                continue
            _try_again(campaign, row, jobs, until)
        else:
            row = _run(campaign, range(first, first + (cases or campaign.long)), jobs, until)
        known[campaign.name] = row
        failed = failed or any(not seen.mended for seen in row.failures)
        click.echo(row.text(campaign))
        if write:  # after each one: what was seen is not lost with what comes later
            _write(known)
    if write:
        click.echo(f"wrote {PAGE.relative_to(ROOT)}")
    sys.exit(failed)


def _run(campaign: Campaign, seeds: range, jobs: int, until: float) -> Row:
    row = Row(_commit(), f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}", seeds.start)
    began = time.monotonic()
    for result in run(campaign, seeds, jobs, until):
        row.cases += 1
        if result is not None:
            row.failures.append(Seen(result.seed, result.seen))
            click.echo(f"{campaign.name}, seed {result.seed}: {result.seen}", err=True)
    row.minutes = round((time.monotonic() - began) / 60, 1)
    return row


def _try_again(campaign: Campaign, row: Row, jobs: int, until: float) -> None:
    """Note which of the cases that did not hold do so now."""
    tried = [seen.seed for seen in row.failures if not seen.mended]
    results = list(run(campaign, tried, jobs, until))
    if len(results) < len(tried):
        return  # there was no time for all of them
    failures = {result.seed: result.seen for result in results if result is not None}
    for seen in row.failures:
        if seen.seed in failures:
            seen.text = failures[seen.seed]
            click.echo(f"{campaign.name}, seed {seen.seed}: {seen.text}", err=True)
        elif not seen.mended:
            seen.mended = _commit()


def _commit() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _read() -> dict[str, Row]:
    """Of each campaign its newest run."""
    if not RESULTS.exists():
        return {}
    held: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {
        name: Row(**{**row, "failures": [Seen(**seen) for seen in row["failures"]]})
        for name, row in held.items()
    }


def _write(rows: dict[str, Row]) -> None:
    text = json.dumps({name: dataclasses.asdict(row) for name, row in rows.items()}, indent=1)
    RESULTS.write_text(f"{text}\n", encoding="utf-8")
    PAGE.write_text(_page(rows), encoding="utf-8")


def _page(rows: dict[str, Row]) -> str:
    machine = environment()
    ran = [(campaign, rows[campaign.name]) for campaign in CAMPAIGNS if campaign.name in rows]
    table = "\n".join(row.text(campaign) for campaign, row in ran)
    failures = [(c.name, seen) for c, row in ran for seen in row.failures]
    failed = "\n".join(
        f"* {name}, seed {seen.seed}: `{' '.join(seen.text.split())[:300].replace('`', chr(39))}`"
        + (f" (holds at {seen.mended})" if seen.mended else "")
        for name, seen in sorted(failures, key=lambda pair: bool(pair[1].mended))
    )
    dates = " and ".join(sorted({row.date for _, row in ran}))
    return (
        f"""# Campaigns

Many seeded attempts to make st3fx lose, trust, hang on or silently take a thing. They are in
`tests/campaigns/`; a seed is one attempt, and the tests of every change run a short form. This
table has what `python -m tests.campaigns` gave on {dates}: cases as they held about the
commit that is named, and after a mend tried again by `--again`. {machine["cpu"]}, torch
{machine["torch"]}, Python {machine["python"]}.

| tried | must hold | held | commit | took |
| --- | --- | --- | --- | --- |
{table}

{"What did not hold:" if failed else ""}

{failed}
""".rstrip()
        + "\n"
    )


if __name__ == "__main__":
    main()
