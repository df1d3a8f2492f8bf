from __future__ import annotations

import pytest

from st3fx.report import markup


def plain(words: str) -> str:
    return words.replace(markup.SPACE, " ")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.617, "61.7 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.99996, "> 99.9 %"),
        (0.0001, "< 0.1 %"), (0.9996, "> 99.9 %"), (0.9994, "99.9 %"),
    ],
)  # fmt: skip
def test_shares_that_are_not_all_are_never_rounded_to_it(share: float, said: str) -> None:
    assert plain(markup.percent(share)) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"), (512, "512"), (999, "999"), (1000, "1.00 k"), (86_000, "86.0 k"),
        (27_701_440, "27.7 M"), (4_089_184_256, "4.09 G"), (999_999, "1.00 M"), (2.5e12, "2.50 T"),
    ],
)  # fmt: skip
def test_counts_have_three_digits(number: float, said: str) -> None:
    assert plain(markup.count(number)) == said


def test_units() -> None:
    assert plain(markup.size(999)) == "999 B"
    assert plain(markup.size(1_090_000)) == "1.09 MB"
    assert plain(markup.milliseconds(12.43)) == "12.4 ms"
    assert plain(markup.milliseconds(0.61)) == "610 µs"
    assert plain(markup.times(1.0)) == "1.00 ×"
    assert markup.three(0.11904) == "0.119"
    assert markup.three(0.00012345) == "0.00012"
    assert markup.three(-61.66) == "-61.7"


def test_names_and_lists() -> None:
    assert markup.shape((64, 3, 7, 7)) == "64×3×7×7"
    assert markup.shape(()) == "scalar"
    assert (markup.plural(1, "site"), markup.plural(2000, "site")) == ("1 site", "2,000 sites")
    assert markup.short_name("layer1.0.conv1.weight") == "layer1.0.conv1"
    long = markup.short_name("backbone.stages.3.blocks.12.attention.projection.weight")
    assert (len(long), long[:9], long[-10:]) == (26, "backbone…"[:9], "projection")
    assert markup.listed(["a"]) == "a"
    assert markup.listed(["a", "b", "c"]) == "a, b and c"
    assert markup.listed(["a", "b", "c"], limit=2) == "a, b and 1 more"
