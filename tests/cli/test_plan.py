from __future__ import annotations

import io

import pytest
from rich.console import Console

from st3fx.cli.views.plan import island_line, print_plan, total_line
from st3fx.plan.sites import IslandInfo, Layout, OpaqueModule, Site, SkippedSite, SparsityPlan

LONG = "encoder.layers.encoder_layer_[11].self_attention.in_proj_weight"


def _plan() -> SparsityPlan:
    return SparsityPlan(
        sites=(Site(LONG, (LONG,), (30, 10), "linear", Layout(), ("x",)),),
        skipped=(SkippedSite("[b]bias[/b]", (), "matmul", "excluded"),),
        opaque=(OpaqueModule("", "Odd", "a loop over [data]"),),
        target=0.9,
        total_parameters=1000,
    )


def _text(width: int) -> str:
    file = io.StringIO()
    print_plan(_plan(), Console(file=file, width=width, markup=False, highlight=False))
    return file.getvalue()


def test_what_feeds_a_site() -> None:
    names = ("a", "b", "c")
    sites = tuple(Site(n, (n,), (2, 2), "linear", Layout(), ("",)) for n in names)
    edges = (("x", "a"), ("a", "b"), ("a", "c"), ("b", "c"), ("x", "c"))
    file = io.StringIO()
    print_plan(SparsityPlan(sites, edges=edges), Console(file=file, width=100))
    rows = [line.split("%")[-1].strip() for line in file.getvalue().splitlines() if "%" in line]
    assert rows == ["x", "↑", "a, ↑, 1 more"]


def test_nothing_is_cut_or_read_as_markup() -> None:
    text = _text(200)
    assert LONG in text
    assert "[b]bias[/b]" in text
    assert "a loop over [data]" in text
    assert "(the model)" in text
    assert "30x10" in text
    assert "scalar" in text


def test_names_survive_a_narrow_terminal() -> None:
    lines = _text(50).splitlines()
    column = "".join(line.split()[0] for line in lines if line.strip()[:1].isalpha())
    assert "…" not in "".join(lines)
    assert LONG[:10] in column


@pytest.mark.parametrize(
    ("islands", "line"),
    [
        ([], "no island: every module keeps its own forward"),
        ([IslandInfo("", ("both",), 7)], "1 island, 1 graph (train and eval in one), 7 nodes"),
        (
            [IslandInfo("", ("train", "eval"), 1007)],
            "1 island, 2 graphs (train, eval), 1,007 nodes",
        ),
        (
            [IslandInfo("a", ("train", "eval"), 7), IslandInfo("b", ("train", "eval"), 3)],
            "2 islands, 4 graphs (2 train, 2 eval), 10 nodes",
        ),
    ],
)
def test_island_line(islands: list[IslandInfo], line: str) -> None:
    assert island_line(islands) == line


def test_total_line() -> None:
    assert total_line(_plan()) == (
        "1 site with 300 of 1,000 parameters (30.0%); st3 at 0.9 sparsity leaves about 30 of them"
    )
