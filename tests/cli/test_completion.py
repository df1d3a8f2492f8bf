"""What the Tab key proposes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torchvision
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from st3fx.cli import main
from st3fx.cli.completion import DATASETS, REFERENCE_MODELS, files, model_names
from st3fx.data.table import DATASETS as TABLE
from st3fx.models import MODELS

ROOT = Path(__file__).parent.parent.parent


def _proposed(*words: str) -> list[str]:
    *before, incomplete = words
    found = ShellComplete(main, {}, "st3fx", "_ST3FX_COMPLETE").get_completions(before, incomplete)
    return [item.value for item in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("model.py", "notes.txt", "run.toml", "w.st3w", "w.safetensors", ".hidden.py"):
        (tmp_path / name).touch()
    (tmp_path / "mine.st3fx").mkdir()
    return tmp_path


def test_names_are_those_of_the_libraries() -> None:
    assert list(REFERENCE_MODELS) == list(MODELS)
    assert list(DATASETS) == list(TABLE)
    assert model_names("torchvision") == sorted(torchvision.models.list_models())
    assert model_names("timm") == sorted(timm.list_models())
    assert model_names("no_such_library") == []


def test_specs(folder: Path) -> None:
    assert _proposed("convert", "") == [
        "st3fx:",
        "torchvision:",
        "timm:",
        "mine.st3fx/",
        "model.py",
    ]
    assert _proposed("convert", "mo") == ["model.py"]
    assert _proposed("export", "torchvision:resnet1") == [
        "torchvision:resnet101", "torchvision:resnet152", "torchvision:resnet18",
    ]  # fmt: skip
    assert _proposed("train", "st3fx:lenet-") == ["st3fx:lenet_300_100"]
    assert _proposed("convert", "model.py:b") == []


def test_values_of_options(folder: Path) -> None:
    assert _proposed("convert", "--method", "st3") == ["st3", "st3-sigma"]
    assert _proposed("train", "--recipe", "") == [
        "st3-cifar",
        "st3-imagenet",
        "short",
        "short-sparse",
    ]
    assert _proposed("train", "--data", "cifar") == ["cifar10", "cifar100"]
    assert _proposed("train", "--config", "r") == ["run.toml"]
    assert _proposed("train", "--weights", "w") == ["w.safetensors", "w.st3w"]
    assert _proposed("train", "--output-dir", "m") == ["mine.st3fx/"]
    assert "--total-steps" in _proposed("convert", "--to")


def test_files_in_other_folders(folder: Path) -> None:
    (folder / "mine.st3fx" / "net.py").touch()
    assert list(files("mine.st3fx/", (".py",))) == ["mine.st3fx/net.py"]
    assert list(files(f"{folder}/mo", (".py",))) == [f"{folder}/model.py"]
    assert list(files(".h", (".py",))) == [".hidden.py"]
    assert list(files("nowhere/x", (".py",))) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert "_ST3FX_COMPLETE" in result.stdout
    assert f"{shell}_complete" in result.stdout
    assert CliRunner().invoke(main, ["completion", "csh"]).exit_code == 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("st3fx co", ["convert", "compare", "completion"]),
        ("st3fx convert torchvision:resnet1", ["resnet101", "resnet152", "resnet18"]),
        ("st3fx convert torchv", ["torchvision:"]),
        ("st3fx train --data=cif", ["cifar10", "cifar100"]),
        ("st3fx train --data cif", ["cifar10", "cifar100"]),
        ("st3fx train 'st3fx:resnet5", ["resnet56"]),
    ],
)
def test_bash_itself(line: str, expected: list[str], tmp_path: Path) -> None:
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    program = tmp_path / "st3fx"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m st3fx "$@"\n')
    program.chmod(0o755)
    code = f"""{script}
compopt() {{ :; }}  # works only while a key is pressed
COMP_LINE=$1 COMP_POINT=${{#1}}
_st3fx_completion st3fx
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", code, "bash", line],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.stdout.splitlines() == expected, done.stderr


def test_completion_imports_no_library(tmp_path: Path) -> None:
    code = """
import sys
from click.shell_completion import ShellComplete
from st3fx.cli import main
found = ShellComplete(main, {}, "st3fx", "x").get_completions(["convert"], "timm:convnext_t")
print(len(found) > 0, [name for name in ("torch", "torchvision", "timm") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
