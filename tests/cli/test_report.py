from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from st3fx.cli import main
from tests.models import TINY, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file that prints, and its bundle."""
    folder = tmp_path_factory.mktemp("report")
    path = write(folder, "tiny.py", TINY + "\n    print('hello from the model')\n")
    result = CliRunner().invoke(main, ["convert", str(path), "-o", str(folder / "tiny.st3fx")])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("tiny.st3fx")


def report(*args: str) -> Result:
    return CliRunner().invoke(main, ["report", *args])


@pytest.mark.slow
def test_the_command_says_what_is_there_and_what_is_not(bundle: Path) -> None:
    result = report(str(bundle), "--png", "png", "--trust")
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert "dataflow   filled" in lines
    assert any(line.startswith("training   tiny.st3fx is a bundle without a run") for line in lines)
    assert lines[-2] == "wrote 4 pictures into png"
    assert lines[-1].startswith("wrote ")
    assert Path("tiny.report.html").is_file()
    assert len(list(Path("png").iterdir())) == 4


def test_json_is_all_there_is(bundle: Path) -> None:
    result = report(str(bundle), "-o", "out.html", "--json", "--trust")
    data = json.loads(result.stdout)
    assert "hello from the model" in result.stderr
    assert (data["path"], data["model"]) == ("out.html", "tiny")
    assert data["bytes"] == Path("out.html").stat().st_size
    assert data["sections"]["training"]["filled"] is False
    assert data["pictures"] == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere",), "nowhere is no run and no bundle"),
        (("tiny.st3fx", "-o", "tiny.py"), "tiny.py exists and is no report"),
        (("tiny.st3fx", "--bench", "tiny.py"), "tiny.py is no JSON"),
        (("tiny.st3fx", "--png", "tiny.py"), "tiny.py is a file"),
    ],
)
def test_a_mistake_is_one_line(bundle: Path, args: tuple[str, ...], message: str) -> None:
    before = sorted(Path().rglob("*"))
    result = report(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
