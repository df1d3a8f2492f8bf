"""What reaches a terminal: no control sequences from names, no traceback without a bug."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.panel import Panel
from rich.text import Text

from st3fx.cli import main
from st3fx.cli.app import _warning
from st3fx.cli.terminal import CLOSED, Output, finish, on_interrupt
from st3fx.cli.views.display import PlainReport
from st3fx.cli.views.progress import Progress
from st3fx.cli.views.tables import Terminal, make_grid, make_table
from st3fx.errors import DriftWarning, OutputError, exhausted, printable
from tests.models import TINY, write

EVIL = "\x1b[2Jw\x9b31m\u202ereversed\u2066\r\x00\x07\udc80"
SHOWN = r"\x1b[2Jw\x9b31m\u202ereversed\u2066\r\x00\x07\udc80"


def test_what_cannot_be_seen_is_an_escape() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable("a\nb\tc", lines=True) == "a\nb\tc"
    assert printable("é ü 漢字 ✓ 64×3 µs") == "é ü 漢字 ✓ 64×3 µs"


def _shown(*things: object, width: int = 100) -> str:
    file = io.StringIO()
    console = Terminal(file, width=width)
    for thing in things:
        console.print(thing, soft_wrap=isinstance(thing, str | Text))
    return file.getvalue()


@pytest.mark.parametrize(
    "thing",
    [
        EVIL,
        Text(EVIL),
        Text.assemble("a", (EVIL, "bold")),
        make_table(("name",), [(EVIL,)], title=EVIL),
        make_grid([(EVIL, EVIL)]),
        Panel("x", title=Text(EVIL)),
    ],
    ids=["str", "text", "styled", "table", "grid", "panel"],
)
def test_a_name_steers_no_terminal(thing: object) -> None:
    text = _shown(thing)
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert r"\x1b[2Jw" in text


def test_rich_itself_may_steer_it() -> None:
    file = io.StringIO()
    with Progress(Terminal(file, force_terminal=True), delay=1000) as report:
        report(f"[red]{EVIL}[/nothing]")
        report._show()
        report._live.refresh()
    # The cursor is hidden and shown again; the text is no markup.
    assert "\x1b[?25l" in file.getvalue()
    assert "\x1b[?25h" in file.getvalue()
    assert "\x1b[2J" not in file.getvalue()
    assert rf"[red]{SHOWN[:10]}" in file.getvalue()


def test_what_begins_while_stdout_is_elsewhere_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a spinner does that appears while a library's own prints are kept out."""
    before, console = io.StringIO(), Terminal(io.StringIO(), force_terminal=True)
    monkeypatch.setattr(sys, "stdout", before)
    progress = Progress(console, delay=1000)
    with progress:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        progress._show()
        monkeypatch.setattr(sys, "stdout", before)
    assert sys.stdout is before


def test_a_warning_and_a_log_line_are_seen() -> None:
    assert _warning(DriftWarning(EVIL), DriftWarning, "x.py", 1) == f"warning: {SHOWN}\n"
    assert "\x1b" not in _warning(UserWarning(EVIL), UserWarning, "x.py", 1)
    file = io.StringIO()
    PlainReport(file).note(EVIL)
    # rich takes carriage returns and bells away.
    assert file.getvalue() == "note: " + SHOWN.replace(r"\r\x00\x07", r"\x00") + "\n"


@pytest.mark.parametrize("command", ["convert", "analyze", "fold"])
def test_names_of_layers_files_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "c\x1b[31m\u202eonv"
    source = TINY.replace("import torch\n", f"import torch\n    NAME = {name!r}\n", 1)
    source = source.replace("self.conv = nn", "self.conv = None; self.add_module(NAME, nn")
    source = source.replace("padding=1)", "padding=1))").replace(
        "self.conv(x)", "getattr(self, NAME)(x)"
    )
    write(tmp_path, "\x1b[35mmodel.py", source)
    options = ["--sparsity", "0.5"] if command != "convert" else ["--dry-run"]
    result = CliRunner().invoke(main, [command, "\x1b[35mmodel.py", *options])
    assert result.exit_code == 0, result.output
    assert set(result.output) - {"\n"} == {char for char in result.output if char.isprintable()}
    assert r"c\x1b[31m\u202eonv" in result.output or command == "fold"
    if command != "fold":
        result = CliRunner().invoke(main, [command, "\x1b[35mmodel.py", *options, "--json"])
        assert json.dumps(f"{name}.weight") in result.stdout
        assert json.loads(result.stdout)


@pytest.mark.parametrize(
    "args",
    [
        ["convert", "\x1b[31mmissing.py"],
        ["convert", "--\x1b[31m"],
        ["\x1b[31mverb"],
        ["analyze", "missing.onnx\u202e"],
        ["report", "no\nrun\x9b"],
    ],
)
def test_errors_are_one_line_without_escapes(args: list[str]) -> None:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr[:-1].isprintable()


NAMES = ("layer1.0.conv1.weight", "features.17.block.3.project.weight")


@pytest.mark.parametrize("width", [40, 58, 200])
def test_names_and_units_stay_whole_on_a_narrow_terminal(width: int) -> None:
    columns = ("layer", "shape", "MACs", "memory", "fed by")
    rows = [(name, "64x64x3x3", "118 M", "147 kB", "") for name in NAMES]
    table = make_table(columns, rows, numbers=("MACs", "memory"), whole=columns[1:])
    text = _shown(table, width=width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("64x64x3x3", "118 M", "147 kB", *(NAMES if width != 58 else ())):
        assert word in text
    # A list where the table finds no room, and folded names where it nearly does.
    assert text.splitlines()[1].startswith("  shape ") == (width == 40)


def test_lines_of_a_file_end_with_their_last_letter() -> None:
    rows = [("a", "short"), ("b", "a much longer text")]
    for shown in (make_grid(rows), make_table(("name", "what"), rows, title="t")):
        file = io.StringIO()
        Terminal(file, width=10_000).print(shown)
        lines = file.getvalue().split("\n")
        assert all(line == line.rstrip() for line in lines)
        assert any(line.endswith("short") for line in lines)
        assert any(line.endswith("a much longer text") for line in lines)
    file = io.StringIO()
    Terminal(file, width=40, force_terminal=True).print(make_grid(rows))
    assert "short " in file.getvalue()


@pytest.mark.parametrize(
    ("width", "heads", "gone"),
    [
        (42, "name op share fed by", ""),
        (41, "name op share", "no room for fed by"),
        (33, "name op share", "no room for fed by"),
        (32, "name op", "no room for fed by, share"),
    ],
)
def test_a_name_is_whole_before_columns_that_can_be_spared(
    width: int, heads: str, gone: str
) -> None:
    columns = ("name", "op", "share", "fed by")
    rows = [("layer1.0.conv1", "conv2d", "0.1%", "x"), ("fc", "linear", "0.2%", "iadd_1")]
    table = make_table(columns, rows, spare=("fed by", "share"))
    for _ in range(2):  # a table that was shown is what it was
        text = _shown(table, width=width).splitlines()
        assert text[1].split() == heads.split()
        assert any("layer1.0.conv1" in line for line in text)
        assert text[-1] == gone
        assert len(table.columns) == 4


def test_a_column_in_the_middle_can_be_spared() -> None:
    table = make_table(("a", "bb", "c"), [("1", "2" * 30, "3")], numbers=("c",), spare=("bb",))
    assert _shown(table, width=20).splitlines() == [
        "",
        " a   c",
        " ─────",
        " 1   3",
        "",
        "no room for bb",
    ]


@pytest.mark.parametrize("width", [8, 80])
def test_what_stands_above_a_table_may_be_wider_than_it(width: int) -> None:
    file = io.StringIO()
    table = make_table(("layer", "of"), [("a", "b")], title="eight letters wide, or more")
    Terminal(file, width=width).print(table)
    lines = file.getvalue().split("\n")
    assert lines[0] == ("eight letters wide, or more" if width == 80 else "eight")


def test_a_table_of_many_short_columns_is_whole_at_every_width() -> None:
    columns = ("layer", "weights", "MACs", "loss", "50 %")
    rows = [("conv", "84.4 %", "99.7 %", "+4.2967", "+8.3"), ("head", "15.6 %", "0.3 %", "0", "0")]
    table = make_table(columns, rows, numbers=columns[1:], whole=columns[1:])
    kinds = set()
    for width in range(20, 60):
        text = _shown(table, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert all(word in text for word in ("conv", "head", "84.4 %", "+4.2967"))
        kinds.add("weights  84.4 %" in text)
    assert kinds == {True, False}


def test_a_full_stdout_and_one_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(os, "dup2", lambda old, new: said.append(new))
    device = os.open("/dev/full", os.O_WRONLY)
    full = Output(os.fdopen(device, "wb", buffering=0), write_through=True)
    with pytest.raises(OutputError, match=r"^cannot write to standard output: No space left"):
        full.write("x")
    reader, writer = os.pipe()
    os.close(reader)
    pipe = Output(os.fdopen(writer, "wb", buffering=0), write_through=True)
    with pytest.raises(SystemExit) as end:
        pipe.write("x")
    assert end.value.code == CLOSED
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        pipe.write("x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]
    assert set(said) == {1}
    for output in (full, pipe):
        output.detach().close()


def test_the_exit_code_says_that_the_last_lines_are_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OutputError("cannot write to standard output: full")

    monkeypatch.setattr(sys, "stdout", Full())
    assert finish(0) == 2
    assert capsys.readouterr().err == "error: cannot write to standard output: full\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert [finish(code) for code in (None, 0, 3, "text")] == [0, 0, 3, 1]


def test_ctrl_c_within_an_import_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class EndError(Exception):
        pass

    def end(code: int) -> None:
        raise EndError(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    write(tmp_path, "slow_library.py", "from st3fx.cli.terminal import on_interrupt\nimport sys\n"
                                       "on_interrupt(2, sys._getframe())\n")  # fmt: skip
    with pytest.raises(EndError, match="130"):
        __import__("slow_library")
    with pytest.raises(KeyboardInterrupt):
        on_interrupt(2, None)


def test_ctrl_c_elsewhere_is_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.commands["doctor"], "callback", pressed)
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory: close"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                      "4000000000 bytes. Error code 12"),
         "not enough memory, 4 GB more were asked for: close"),
        (RuntimeError("std::bad_alloc"), "not enough memory: "),
        (RuntimeError("could not create a primitive"), "not enough memory: "),
        (RuntimeError("unable to open file <w> in read-only mode: Too many open files (24)"),
         "too many open files: raise"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
         "not enough memory, 2.15 GB more were asked for: "),
        (RuntimeError("can't start new thread"), "no more threads can be started: raise"),
        (OSError(errno.EMFILE, "Too many open files", "a.py"), "a.py: too many open files: raise"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: make room"),
        (PermissionError(errno.EACCES, "Permission denied", "w.bin"), "w.bin: Permission denied"),
    ],
)  # fmt: skip
def test_what_the_machine_has_run_out_of_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def work(**_: object) -> None:
        try:
            raise error
        except Exception as inner:
            raise ValueError("of a library") from inner

    monkeypatch.setattr(main.commands["doctor"], "callback", work)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exhausted(FileNotFoundError(errno.ENOENT, "No such file")) is None

    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(main.commands["doctor"], "callback", broken)
    result = CliRunner().invoke(main, ["doctor"])
    assert (result.exit_code, type(result.exception)) == (1, ZeroDivisionError)


@pytest.mark.slow
def test_the_program_itself(tmp_path: Path) -> None:
    """Its streams, without torch: full, closed by the reader, not there."""
    shell = f"""
cd {tmp_path}
run() {{ {sys.executable} -m st3fx "$@"; }}
run --help > /dev/full; echo "full $?" >&2
{{ run completion bash; echo "closed $?" >&2; }} | true
run --help >&-; echo "none $?" >&2
run nothing 2> /dev/full; echo "deaf $?" >&2
"""
    path = os.pathsep.join(
        [str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        "error: cannot write to standard output: No space left on device",
        "full 2",
    ]
    assert lines[2] in (f"closed {CLOSED}", "closed 0")
    assert lines[3:] == ["none 0", "deaf 2"]
