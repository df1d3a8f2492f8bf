"""A short form of each campaign, with seeds that the long form begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from st3fx.cli.app import main
from tests.campaigns.attempt import Failure, attempt, run
from tests.campaigns.table import CAMPAIGNS, Campaign
from tests.campaigns.wrong_lines import BASE


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda campaign: campaign.name)
def test_holds(campaign: Campaign) -> None:
    seeds = range(campaign.short)
    if campaign.forks:
        assert not [failure for failure in run(campaign, seeds, jobs=1) if failure is not None]
        return
    case = campaign.case()
    seen = {seed: attempt(case, seed) for seed in seeds}
    assert not {seed: text for seed, text in seen.items() if text is not None}


def test_what_a_case_raises_is_a_failure() -> None:
    def case(seed: int, folder: Path) -> str | None:
        raise ValueError(f"no {seed} in {folder.is_dir()}")

    seen = attempt(case, 7)
    assert seen is not None
    assert seen.startswith("ValueError: no 7 in True (test_campaigns.py:")


def test_what_was_seen_has_no_path_of_this_machine() -> None:
    def case(seed: int, folder: Path) -> str | None:
        raise ValueError(f"no {folder}/log, as {__file__} says")

    seen = attempt(case, 0)
    assert seen is not None
    assert seen.startswith("ValueError: no CASE/log, as ST3FX/tests/campaigns/")


@pytest.mark.slow
def test_a_process_that_ends_is_a_failure_and_the_next_case_runs() -> None:
    campaign = Campaign("example", "", "", long=4, short=0)
    results = list(run(campaign, range(4), jobs=1))
    assert results == [
        None,
        Failure(1, "the process ended by itself with 3"),
        Failure(2, "RuntimeError: two (example.py:15)"),
        Failure(3, "three is too many"),
    ]


def test_each_command_is_given_wrong_lines() -> None:
    assert BASE.keys() == main.commands.keys()


def test_every_file_is_in_the_table() -> None:
    others = {"__init__", "__main__", "attempt", "example", "table", "test_campaigns"}
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    assert {campaign.name for campaign in CAMPAIGNS} == files - others
