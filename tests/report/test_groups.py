from __future__ import annotations

from st3fx.report.charts import MOST, grouped
from tests.report.made import block_names


def test_a_few_names_stay_single() -> None:
    assert grouped(["a.weight", "b.0.weight"]) == {
        "a.weight": ["a.weight"],
        "b.0.weight": ["b.0.weight"],
    }


def test_many_names_go_by_the_longest_prefix_that_is_short_enough() -> None:
    names = ["stem.weight", *block_names(150)]
    groups = grouped(names)
    assert len(groups) == 51 <= MOST
    assert list(groups)[:2] == ["stem.weight", "stages.0.blocks.0"]
    assert groups["stages.0.blocks.0"] == names[1:4]
    assert [name for inner in groups.values() for name in inner] == names
    assert list(grouped(block_names(500))) == [f"stages.{k}.blocks" for k in range(6)]


def test_names_without_dots_cannot_be_put_together() -> None:
    names = [f"w{k}" for k in range(MOST + 5)]
    assert list(grouped(names)) == names
    assert grouped([]) == {}
