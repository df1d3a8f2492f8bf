"""The documentation: the tutorial does what it says, and what other pages show exists.

The site itself is built by ``.ci/run``, where a warning is an error.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import st3fx
from st3fx.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\S*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """What stands behind the fence, and the text, of each block in a language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(rest.strip(), text) for _, kind, rest, text in found if kind == language]


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks that call st3fx."""
    lines = [line for _, text in blocks(page, "") for line in text.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("st3fx ")]


def chosen(line: str) -> tuple[click.Command, list[str]]:
    """The command that a line calls, and what it is given."""
    name, *rest = shlex.split(line, comments=True)[1:]
    return main.commands[name], rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_that_a_page_shows_are_there(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if len(words) < 2 or words[1] not in main.commands:
            assert " ".join(words[1:]).startswith("-"), line  # `st3fx --help`
            continue
        command, given = chosen(line)
        known = {name for option in command.params for name in option.opts + option.secondary_opts}
        shown = {word.partition("=")[0] for word in given if re.match(r"--?[a-z]", word)}
        assert shown <= known | {"--help"}, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_that_a_page_shows_are_there(page: Path) -> None:
    for _, text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "st3fx":
                assert hasattr(st3fx, node.attr), f"st3fx.{node.attr}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("st3fx"):
                path = ROOT / str(node.module).replace(".", "/")
                assert path.with_suffix(".py").exists() or path.is_dir(), node.module


@pytest.mark.slow
def test_the_tutorial_to_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its files, commands and programs in their order, but for fewer epochs and seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    ran = 0
    for _, kind, rest, text in FENCE.findall((ROOT / "docs" / "tutorial.md").read_text("utf-8")):
        if title := re.search(r'title="(.*?)"', rest):
            (tmp_path / title[1]).write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, "tutorial.md", "exec"), {})
            ran += 1
        elif text.startswith("st3fx "):
            words = shlex.split(text.replace("--epochs 4", "--epochs 1"))[1:]
            more = ["-t", "1", "-w", "0.2"] if words[0] == "bench" else []
            result = CliRunner().invoke(main, [*words, *more])
            assert result.exit_code == 0, result.stderr
            ran += 1
    assert ran == 10
    assert (tmp_path / "runs/model/report.html").exists()
    sys.modules.pop("model")
