"""The group of all commands: its help text, and what it costs to show."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from st3fx.cli import main
from st3fx.cli.app import SECTIONS
from st3fx.cli.contradictions import require_apart
from st3fx.errors import TargetWarning
from tests.models import TINY, write

COMMANDS = list(main.commands)


def test_help_lists_all_commands_in_the_order_of_the_work() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    below = text.partition(f"\n{next(iter(SECTIONS))}:\n")[2]
    assert below
    places = [below.index(f"\n  {name} ") if index else 0 for index, name in enumerate(COMMANDS)]
    assert places == sorted(places)
    assert COMMANDS[:4] == ["convert", "train", "fold", "export"]
    for title in SECTIONS:
        assert f"{title}:\n" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_sentence_is_cut_short(width: int) -> None:
    text = CliRunner().invoke(main, ["--help"], terminal_width=width).stdout
    assert "..." not in text.removeprefix("Usage: st3fx [OPTIONS] COMMAND [ARGS]...")
    assert max(map(len, text.splitlines())) <= width


def test_every_command_has_help_and_no_torch_is_imported_for_it() -> None:
    code = f"""
import sys
from click.testing import CliRunner
from st3fx.cli import main
for name in [[], *([name] for name in {COMMANDS!r})]:
    result = CliRunner().invoke(main, [*name, "--help"])
    assert result.exit_code == 0, name
    assert len(result.stdout.splitlines()) > 5, name
print([name for name in ("torch", "onnx", "onnxruntime", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["doctr"], "no such command 'doctr'; did you mean doctor? See st3fx --help"),
        (
            ["train", "--sparsty", "1"],
            (
                "no such option '--sparsty'; did you mean --draw-sparsity, --sparsity, "
                "--sparsity-of? See st3fx train --help"
            ),
        ),
        (["fold"], "missing argument 'SPEC'; see st3fx fold --help"),
    ],
)
def test_a_slip_is_one_sentence(words: list[str], line: str) -> None:
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stderr) == (2, f"error: {line}\n")


def test_every_command_is_under_a_heading() -> None:
    listed = [command for commands in SECTIONS.values() for command in commands]
    assert listed == list(main.commands.values())
    assert all(command.help for command in listed)


@pytest.mark.parametrize("command", ["fold model.st3fx --sparsity 0.5", "analyze model.py"])
def test_a_model_is_folded_and_counted_without_onnx(tmp_path: Path, command: str) -> None:
    write(tmp_path, "model.py", TINY)
    code = f"""
import sys
from st3fx.cli import main
main("convert model.py".split(), standalone_mode=False)
main({command!r}.split(), standalone_mode=False)
print([name for name in ("onnx", "onnxruntime", "onnxscript") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_warning_of_ours_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, "model.py", TINY)
    code = """
from st3fx.cli import main
main("convert model.py".split(), standalone_mode=False)
main("fold model.st3fx --allow-dense".split(), standalone_mode=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert re.fullmatch(r"warning: folded at sparsity 0 of the target 0.9: .*\n", done.stderr)


def test_what_is_refused_has_no_warning_of_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "model.py", TINY)
    monkeypatch.chdir(tmp_path)

    def said(line: str) -> tuple[Result, list[str]]:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", TargetWarning)
            result = CliRunner().invoke(main, line.split())
        return result, [str(one.message)[:20] for one in seen]

    assert said("convert model.py")[0].exit_code == 0
    refused, warned = said("bench model.st3fx --trust --allow-dense -i 1x3x7x7 -i 3")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: Tiny refuses the example inputs")
    assert refused.stderr.count("\n") == 1
    assert warned == []
    assert said("fold model.st3fx --trust --allow-dense")[1] == ["folded at sparsity 0"]


@pytest.mark.parametrize("name", ["settings.toml", "checkpoints/last.pt", "model.st3fx/graph.txt"])
def test_no_result_replaces_a_file_that_its_run_is_made_of(tmp_path: Path, name: str) -> None:
    require_apart({"--output": tmp_path / "page.html"}, (tmp_path,))
    with pytest.raises(click.UsageError, match="it is read from there; name another file"):
        require_apart({"--output": tmp_path / name}, (tmp_path,))
