"""The doctor survives whatever its probes do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from st3fx.doctor.probe import Diagnosis, Finding, Probe
from st3fx.doctor.run import PROBES, diagnose
from st3fx.doctor.worker import outcome
from tests.killed import ends, family


def _probe(name: str, *, required: bool = False, limit: float = 60.0) -> Probe:
    return Probe("part", name, f"tests.doctor.probes:{name}", "x fails", "mend it", required, limit)


def test_each_probe_is_a_line_whatever_the_others_do() -> None:
    names = ("fine", "dies", "raises", "exits", "absent")
    begun: list[str] = []
    found = diagnose([_probe(name) for name in names], begun.append).findings
    assert [item.name for item in found] == list(names)
    assert [item.status for item in found] == ["ok", "failed", "failed", "failed", "absent"]
    fine, dies, raises, exits, absent = found
    assert fine == Finding("part", "fine", "ok", False, "as it should be", seconds=fine.seconds)
    assert dies.detail == "its process ended by SIGSEGV: the last words"
    assert (dies.consequence, dies.advice) == ("x fails", "mend it")
    assert raises.detail == "ValueError: broken"
    assert exits.detail == "its process ended with exit code 3"
    assert (absent.detail, absent.consequence, absent.advice) == ("not here", "x fails", "get it")
    assert begun == list(names)


@pytest.mark.slow
def test_one_that_hangs_is_ended() -> None:
    hangs, fine = diagnose([_probe("hangs", limit=2.0), _probe("fine")]).findings
    assert hangs.detail == "it did not end within 2 s"
    assert fine.status == "ok"


def test_slow_ones_run_beside_the_others_and_keep_their_place() -> None:
    found = diagnose([_probe("absent", limit=500.0), _probe("fine"), _probe("raises")]).findings
    assert [item.name for item in found] == ["absent", "fine", "raises"]


@pytest.mark.parametrize("target", ["no.such.module:f", "tests.doctor.probes:no_such_function"])
def test_what_cannot_be_imported_is_broken(target: str) -> None:
    said = outcome(target)
    assert said["status"] == "failed"
    assert "no" in said["detail"]


@pytest.mark.parametrize(
    ("name", "required", "works"),
    [("fine", True, True), ("raises", False, True), ("raises", True, False),
     ("absent", True, False), ("absent", False, True)],
)  # fmt: skip
def test_the_main_path_works_if_all_that_it_needs_does(
    name: str, required: bool, works: bool
) -> None:
    status = {"fine": "ok", "raises": "failed", "absent": "absent"}[name]
    finding = Finding("part", name, status, required, "")  # type: ignore[arg-type]
    diagnosis = Diagnosis("1", (finding,), 0.0)
    assert diagnosis.works is works
    data = json.loads(json.dumps(diagnosis.to_dict()))
    assert data["works"] is works
    assert data["findings"][0]["status"] == status


def test_the_table_names_functions_that_exist_once() -> None:
    import importlib

    targets = [probe.target for probe in PROBES]
    assert len(set(targets)) == len(targets)
    for target in targets:
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert {probe.name for probe in PROBES if probe.required} == {
        "torch", "data", "convert and fold", "train", "export", "analyze",
    }  # fmt: skip
    assert all(probe.consequence for probe in PROBES)


PARENT = """
import os, sys, threading, time
from pathlib import Path
from st3fx.doctor.probe import Probe
from st3fx.doctor.run import diagnose
note = Path(sys.argv[1])
os.environ["NOTE"] = str(note)
probe = Probe("part", "busy", "tests.doctor.probes:busy", "x", "y", False, 1000.0)
threading.Thread(target=diagnose, args=([probe],), daemon=True).start()
while not note.is_file():
    time.sleep(0.05)
print(note.read_text(), flush=True)
time.sleep(1000)
"""


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Though its probe is busy, and would be ended by the parent alone."""
    with family("-c", PARENT, str(tmp_path / "worker")) as (parent, worker):
        assert not ends(worker, seconds=0.5)
        parent.kill()
        assert ends(worker)
