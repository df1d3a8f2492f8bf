"""The result as JSON: a round trip, and files that are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from st3fx.bench.bench_result import FORMAT, BenchResult, Ratio, read_result
from st3fx.errors import BenchError
from tests.bench.made import result, row


def test_a_file_gives_the_same_back(tmp_path: Path) -> None:
    about = {"skips_zeros": True, "integers": True, "int8_ratio": Ratio(2.0, 1.9, 2.1)}
    made = result(row("dense"), row("folded", (0.9, 1.0, 1.1), peak_memory=None, **about))
    path = tmp_path / "out.json"
    made.write(path)
    again = read_result(path)
    assert again.rows == made.rows
    assert again.to_dict() == made.to_dict()
    assert again.rows[1].ratio is not None
    assert (again.rows[0].ratio, again.rows[1].ratio.low) == (None, 0.9)
    data = json.loads(path.read_text())
    assert (data["format"], data["format_version"]) == ("st3fx-bench", 3)
    assert again.rows[1].int8_ratio == Ratio(2.0, 1.9, 2.1)
    assert data["rows"][1]["ratio"] == {"median": 1.0, "low": 0.9, "high": 1.1}


def test_a_file_of_the_version_before_integers() -> None:
    data = {**result().to_dict(), "format_version": 1}
    del data["digest"]
    for values in data["rows"]:
        del values["integers"], values["int8_ratio"]
    assert BenchResult.from_dict(data) == result()


def test_json_values_alone(tmp_path: Path) -> None:
    made = result()
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    assert BenchResult.from_dict(made.to_dict()).verdict == made.verdict


BAD = {
    "hello": "is no JSON (Expecting value: line 1 column 1 (char 0)): write it anew",
    "[]": "not the result of st3fx bench: write one with -x",
    '{"format": "st3fx-bundle"}': "not the result of st3fx bench",
    f'{{"format": "{FORMAT}", "format_version": 99}}': "has format 99, and this st3fx reads",
    f'{{"format": "{FORMAT}", "format_version": 1}}': "it is missing required field model",
}


@pytest.mark.parametrize("text", BAD)
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(text)
    with pytest.raises(BenchError) as caught:
        read_result(path)
    assert str(caught.value).startswith(str(path))
    assert BAD[text] in str(caught.value)


def test_a_row_with_an_unknown_field_is_damage() -> None:
    data = result().to_dict()
    data["rows"][0]["more"] = 1
    with pytest.raises(BenchError, match="was damaged or edited"):
        BenchResult.from_dict(data)
    del data["digest"]
    with pytest.raises(BenchError, match=r"rows\[0\].more: no such name"):
        BenchResult.from_dict({**data, "format_version": 2})


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot read .*none.json: No such file"):
        read_result(tmp_path / "none.json")
    with pytest.raises(BenchError, match=r"cannot write .*x.json: No such file"):
        result().write(tmp_path / "none" / "x.json")
    assert list(tmp_path.iterdir()) == []
