from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from st3fx import methods
from st3fx.cli import main
from st3fx.cli.sensitivity import _points
from st3fx.commands.convert import convert_spec, save_bundle
from st3fx.commands.report import write_report
from st3fx.commands.sensitivity import _takes
from st3fx.files.manifest import Recipe
from st3fx.training.sensitivity import read_sensitivity
from tests.models import write
from tests.report.conftest import run as run  # noqa: PLC0414 (a fixture)
from tests.report.test_page import Elements
from tests.training.runs import NET


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be written into."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_run_is_measured_and_its_report_shows_it(own: Path, tmp_path: Path) -> None:
    words = ["sensitivity", str(own), "--sparsity", "0.9,0.5", "--images", "64"]
    result = CliRunner().invoke(main, [*words, "--html", str(tmp_path / "s.html")])
    assert result.exit_code == 0, result.stderr
    assert "points of accuracy with one layer at" in result.stdout
    assert result.stdout.splitlines()[-2] == f"wrote {own / 'sensitivity.json'}"
    found = read_sensitivity(own / "sensitivity.json")
    assert found.samples == 64
    assert found.data == "fashion-mnist-mini"
    assert found.sparsities == (0.5, 0.9)
    assert [layer.name for layer in found.layers] == ["stem.weight", "head.weight"]
    assert found.sparsity == pytest.approx(0.8, abs=1e-3)
    text = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "stem.weight" in text
    assert all(link.startswith("#") for link in Elements(text).links)
    report = write_report(own)
    assert "sensitivity" in report.filled
    assert "What each layer costs" in report.path.read_text(encoding="utf-8")
    again = CliRunner().invoke(main, [*words, "--json"])
    assert again.exit_code == 0, again.stderr
    data = json.loads(again.stdout)
    first = json.loads((own / "sensitivity.json").read_text())
    assert data["layers"] == first["layers"]


def test_mistakes_are_one_line(own: Path, tmp_path: Path) -> None:
    def line(*words: object) -> str:
        result = CliRunner().invoke(main, ["sensitivity", *map(str, words)])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr

    assert "--images 0: give a number" in line(own, "--images", "0")
    assert "outside [0, 1)" in line(own, "--sparsity", "0.5,1.5")
    assert "is a bundle, which has its own" in line(own, "--method", "gmp")
    assert "no data for" in line("st3fx:lenet5")
    assert f"no file or folder {tmp_path / 'gone'}" in line(tmp_path / "gone")
    assert f"{tmp_path} is no run and no bundle" in line(tmp_path)
    (own / "sensitivity.json").write_text("my notes")
    assert "exists: choose another file" in line(own)
    assert (own / "sensitivity.json").read_text() == "my notes"
    assert "is no JSON" in line(own, "--reuse", "--budget", "0.5")
    (own / "sensitivity.json").unlink()
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is a device or a pipe" in line(own, "--html", tmp_path / "pipe")
    assert "pipe is a device or a pipe" in line(own, "--budget", 0.5, "-o", tmp_path / "pipe")
    assert "is a folder" in line(own, "--html", own)
    assert "s.html: --export writes that" in line(own, "--html", "s.html", "-x", "s.html")
    shutil.rmtree(own / "model.st3fx")
    assert "its training has not ended" in line(own)


def test_what_is_wrong_is_seen_before_code_runs(tmp_path: Path) -> None:
    write(tmp_path, "net.py", f"{NET}\n    open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    how = methods.to_dict(methods.create("st3"))
    made = convert_spec(Recipe(str(tmp_path / "net.py"), method=how, inputs=("2x1x28x28",)))
    save_bundle(made.model, made.recipe, tmp_path / "b")
    (tmp_path / "ran").unlink()
    words = [str(tmp_path / "b"), "--data", "fashion-mnist-mini", "--trust", "--sparsity", "1"]
    result = CliRunner().invoke(main, ["sensitivity", *words])
    assert result.exit_code == 2
    assert "sparsity 1.0 is outside [0, 1)" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_nothing_has_no_sign() -> None:
    assert [_points(x) for x in (-0.04, 0.0, 0.049, -0.05, 1.0)] == [
        "0.0", "0.0", "0.0", "-0.1", "+1.0",
    ]  # fmt: skip


def test_samples_are_taken_evenly() -> None:
    for whole, images in ((10, 3), (10, 10), (7, 20), (1000, 64)):
        taken = [place for place in range(whole) if _takes(place, images, whole)]
        assert len(taken) == min(whole, images)
        gaps = {b - a for a, b in itertools.pairwise(taken)}
        assert max(gaps) - min(gaps) <= 1
    assert [p for p in range(9) if _takes(p, 4, None)] == [0, 1, 2, 3]
    assert all(_takes(p, None, 5) for p in range(9))
