"""What every reader refuses, and how it says so."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from st3fx.errors import PlanError
from st3fx.files.reading import (
    DEPTH,
    Count,
    DamageError,
    Format,
    build,
    parse_json,
    parse_toml,
    sealed,
    unsealed,
)

FORMAT = Format(PlanError, "write it anew", limit=100)


@dataclass(frozen=True)
class _Inner:
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Outer:
    name: str
    count: Count
    share: float | None
    inner: tuple[_Inner, ...]
    by_name: dict[str, _Inner]
    mode: Literal["a", "b"] = "a"


GOOD: dict[str, Any] = {
    "name": "x", "count": 1, "share": 1, "inner": [{"sizes": [1, 2]}], "by_name": {"k": {}},
}  # fmt: skip


def test_a_dataclass_comes_of_plain_values() -> None:
    assert build(GOOD, _Outer) == _Outer("x", 1, 1.0, (_Inner((1, 2)),), {"k": _Inner()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name: expected str, got int"),
        ({"count": "1"}, "count: expected int, got str"),
        ({"count": True}, "count: expected int, got bool"),
        ({"count": 1.0}, "count: expected int, got float"),
        ({"count": -1}, "count: expected int >= 0"),
        ({"share": False}, "share: expected float | null, got bool"),
        ({"inner": {}}, "inner: expected array, got object"),
        ({"inner": [{"sizes": [1, "2"]}]}, "inner[0].sizes[1]: expected int, got str"),
        ({"inner": [{"size": []}]}, "inner[0].size: no such name"),
        ({"by_name": {"k": {"x": 1}}}, "by_name.k.x: no such name"),
        ({"mode": "c"}, "mode: Invalid enum value 'c'"),
        ({"more": 1}, "more: no such name"),
    ],
)
def test_a_wrong_type_is_told_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DamageError) as caught:
        build({**GOOD, **change}, _Outer)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, f"has more than {DEPTH} levels"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), f"has more than {DEPTH} levels"),
        ('{"a": 1, "a": 2}', "has 'a' twice in one object"),
        ("[NaN]", "has NaN for a number"),
        ("[-Infinity]", "has -Infinity for a number"),
        ("[1e999]", "has inf for a number"),
        ("9" * 100_000, "has a whole number of 100,000 digits"),
        ("9223372036854775808", "has a whole number of more than 64 bits"),
        ('"\\u0000"', "has the text '\\x00', which is none"),
        ('{"\\ud800": 1}', "has the text '\\ud800', which is none"),
        ("\ufeff{}", "is no JSON (Unexpected UTF-8 BOM"),
        (b"\xff\xfe", "is no JSON ('utf-8' codec can't decode"),
        ("", "is no JSON (Expecting value"),
    ],
)
def test_json_that_no_file_of_ours_has(text: str | bytes, message: str) -> None:
    with pytest.raises(DamageError) as caught:
        parse_json(text)
    assert str(caught.value).startswith(message)


def test_what_is_plain_passes() -> None:
    value = {"ä": [1, -(2**63), 1e308, None, True, "x\n"]}
    assert parse_json(json.dumps(value)) == value
    assert parse_toml(b"\xef\xbb\xbfa = 1") == {"a": 1}


def test_a_digest_is_over_all_of_it() -> None:
    body = {"a": 1, "b": [1.5, "x"]}
    assert unsealed(json.loads(json.dumps(sealed(body)))) == body
    others: tuple[Any, ...] = ({**sealed(body), "a": 2}, {**sealed(body), "c": 1}, body, [], None)
    for other in others:
        with pytest.raises(DamageError):
            unsealed(other)


def test_only_regular_files_of_a_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x" * 100)
    assert FORMAT.content(tmp_path / "good") == b"x" * 100
    (tmp_path / "large").write_bytes(b"x" * 101)
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("large", "large has more than 100 bytes: write it anew"),
        ("pipe", "pipe is a pipe, not a file: write it anew"),  # opening it would hang
        (".", "is a folder, not a file: write it anew"),
        ("/dev/zero", "/dev/zero is a device, not a file: write it anew"),
        ("none", "none: No such file or directory"),
    ):
        with pytest.raises(PlanError) as caught:
            FORMAT.content(tmp_path / name)
        assert str(caught.value).endswith(message)
