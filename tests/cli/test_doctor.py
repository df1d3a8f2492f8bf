from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from st3fx.cli import main
from st3fx.doctor.probe import Diagnosis, Finding

FINE = Finding("machine", "python", "ok", False, "3.13")
GONE = Finding("machine", "gpu", "absent", False, "none", "runs on the CPU")
BROKEN = Finding("main path", "train", "failed", True, "OSError: x", "no training", "mend it")


def _run(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *args: str) -> Any:
    diagnosis = Diagnosis("1.2", tuple(findings), 3.4)
    monkeypatch.setattr("st3fx.doctor.run.diagnose", lambda progress: diagnosis)
    return CliRunner().invoke(main, ["doctor", *args])


def test_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, [FINE, GONE])
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "st3fx 1.2",
        "",
        "machine",
        " ✓ python 3.13",
        " – gpu    none",
        "          → runs on the CPU",
        "",
        "the main path works: convert, train, fold, export, analyze; absent: gpu; tried in 3 s",
    ]


def test_a_broken_main_path_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, [FINE, BROKEN])
    assert result.exit_code == 1
    assert " ✗ train  OSError: x" in result.stdout
    assert "→ no training: mend it" in result.stdout
    assert result.stdout.splitlines()[-1].rstrip() == (
        "the main path does not work: train; tried in 3 s"
    )


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, [FINE, BROKEN], "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert (data["version"], data["works"]) == ("1.2", False)
    assert [item["name"] for item in data["findings"]] == ["python", "train"]
    assert data["findings"][1]["advice"] == "mend it"
