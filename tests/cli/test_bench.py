"""``st3fx bench`` as a user runs it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from rich.console import Console

from st3fx.bench.bench_result import read_result
from st3fx.bench.variant import TORCH_MODES as MODES
from st3fx.cli import main
from st3fx.cli.bench import TORCH_MODES
from st3fx.cli.terminal import INTERRUPTED
from st3fx.cli.views import bench
from tests.bench.made import result, row
from tests.flops.graphs import graph
from tests.models import TINY, write

QUICK = ("--iterations", "3", "-w", "0", "-ncores", "1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "tiny.py", "print('building')\n" + TINY.replace("\n    ", "\n"))
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    full = graph([product], {"x": ["n", 3, "k"]}, {"w": np.ones((3, 5), np.float32)})
    full.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    full.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 3
    onnx.save(full, tmp_path / "rows.onnx")
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["bench", *args])


def _json(*args: str) -> dict[str, Any]:
    found = _run(*args, *QUICK, "--json")
    assert found.exit_code == 0, found.output
    data: dict[str, Any] = json.loads(found.stdout)
    return data


@pytest.mark.slow
def test_a_table_sentences_and_the_command() -> None:
    found = _run("tiny.py", "--sparsity", "0.75", "-b", "1,4", *QUICK)
    assert found.exit_code == 0, found.output
    assert "building" not in found.stdout
    lines = found.stdout.splitlines()
    titles = [line.strip() for line in lines if line.startswith("batch")]
    assert titles == ["batch 1, 1 thread, times in ms", "batch 4, 1 thread, times in ms"]
    names = [line.split()[0] for line in lines if line.startswith((" dense", " folded"))]
    assert names == ["dense", "folded"] * 2
    text = " ".join(found.stdout.split())
    assert "Quartiles of 3 rounds say little" in text
    assert "3 calls each after 0 s of warm-up" in text
    assert "dense: the same graph with a small random number in the place of every weight" in text
    assert lines[-1] == (
        "st3fx bench tiny.py -b 1 -b 4 -ncores 1 --sparsity 0.75 --iterations 3 -w 0"
    )


@pytest.mark.slow
def test_json_and_a_file(folder: Path) -> None:
    data = _json("tiny.py", "--sparsity", "0.75", "-x", "out.json")
    assert read_result("out.json").to_dict() == data
    assert data["format"] == "st3fx-bench"
    again = _run("tiny.py", "--sparsity", "0.75", "-x", "out.json", *QUICK)
    assert again.exit_code == 2
    assert again.stderr.startswith("error: out.json exists: choose another file, or replace it")
    assert _run("rows.onnx", "-i", "1x2x3", "-x", "out.json", "--force", *QUICK).exit_code == 0
    assert read_result("out.json").model == "rows.onnx"
    assert {path.name for path in folder.iterdir() if path.name != "__pycache__"} == {
        "out.json", "rows.onnx", "tiny.py"
    }  # fmt: skip


@pytest.mark.slow
def test_a_bundle_needs_zeros_or_a_word() -> None:
    assert CliRunner().invoke(main, ["convert", "tiny.py"]).exit_code == 0
    found = _run("tiny.st3fx", *QUICK)
    assert found.exit_code == 2
    assert found.stderr.splitlines()[-1].startswith("error: tiny.st3fx is not trained yet, its spa")
    names = [row["name"] for row in _json("tiny.st3fx", "--allow-dense")["rows"]]
    assert names == ["dense"]
    data = _json("tiny.st3fx", "--sparsity", "0.5")
    assert ([row["name"] for row in data["rows"]], data["model"]) == (["dense", "folded"], "tiny")
    # As training writes it.
    Path("runs/mine").mkdir(parents=True)
    Path("tiny.st3fx").rename("runs/mine/model.st3fx")
    assert _json("runs/mine/model.st3fx", "--allow-dense")["model"] == "mine"


@pytest.mark.slow
def test_shapes_as_deepsparse_writes_them() -> None:
    assert _json("rows.onnx", "-i", "[1, 7, 3]")["rows"][0]["batch"] == 1
    assert _json("rows.onnx", "--shapes", "4x7x3")["rows"][0]["batch"] == 4
    data = _json("rows.onnx", "-i", "4x7x3", "-b", "2", "-b", "3")
    assert [row["batch"] for row in data["rows"]] == [2, 3]
    assert data["command"].startswith("st3fx bench rows.onnx -b 2 -b 3 -ncores 1 -i 4x7x3")
    assert "2 shapes for 1 inputs" in _run("rows.onnx", "-i", "[1,7,3],[1,2]", *QUICK).stderr


BAD = {
    "rows.onnx": "axis 'rows' (dimension 1) of input x, n x rows x 3, has no size: give the input'",
    "rows.onnx -i 50": "input x is n x rows x 3 in the graph, not 50; for a number of calls, give",
    "text.onnx": "text.onnx is not an ONNX file, or is broken",
    "none.onnx": "no file none.onnx",
    "none.py": "no file none.py",
    "custom.onnx": "custom.onnx: node 'odd' is Mine of the domain my.ops, which ONNX Runtime does",
    "away.onnx": "away.onnx has its weights in away.data, which is not beside it: export it again",
    "clash.onnx": "ONNX Runtime cannot run clash.onnx: ",
    "rows.onnx -b 0": "batch size 0: give a number from 1 on",
    "rows.onnx -i 1x2x3 --provider tpu": "provider 'tpu' is not in this ONNX Runtime: choose from",
    "rows.onnx -i 1x2x3 -x no/out.json": "cannot write no/out.json: there is no folder no",
    "tiny.py": "tiny.py has no weight that is zero: prune it now by --sparsity",
    "odd.py --sparsity 0.5": "Tiny cannot be exported: ONNX has no form of aten.histc",
}


@pytest.mark.parametrize("args", BAD)
def test_what_is_wrong_is_one_line(args: str, folder: Path) -> None:
    (folder / "text.onnx").write_text("hello")
    custom = helper.make_node("Mine", ["x"], ["y"], name="odd", domain="my.ops")
    onnx.save(graph([custom], {"x": [3, 4]}), folder / "custom.onnx")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.ones((64, 64), np.float32)}
    onnx.save(graph([product], {"x": [3, 7]}, weights), folder / "clash.onnx")
    onnx.save(graph([product], {"x": [3, 64]}, weights), folder / "away.onnx",
              save_as_external_data=True, location="away.data")  # fmt: skip
    (folder / "away.data").unlink()
    odd = (folder / "tiny.py").read_text().replace("self.head(", "torch.histc(")
    (folder / "odd.py").write_text(odd)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    found = _run(*args.split(), *QUICK)
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert BAD[args] in found.stderr.splitlines()[-1]
    assert found.stderr.splitlines()[-1].startswith("error: ")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_numbers_that_are_none() -> None:
    found = _run("rows.onnx", "-b", "many")
    assert found.exit_code == 2
    assert "'many': give whole numbers, e.g. 8 or 1,8" in found.stderr
    assert _run().exit_code == 2


HEARS_CTRL_C = (
    "import runpy, signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "runpy.run_module('st3fx', run_name='__main__', alter_sys=True)\n"
)
"""A shell's background jobs, and what they start, do not hear it."""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(folder: Path) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", HEARS_CTRL_C, "bench", "rows.onnx", "-i", "1x2x3", "-t", "600"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        while not list(temporary.rglob("inputs-0.npz")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == INTERRUPTED
    assert list(temporary.glob("*st3fx*")) == []  # ONNX Runtime has a file of its own there
    assert _ends(process.pid)


def _ends(group: int) -> bool:
    """Whether all of a group end: a child that was being started does when it is told nothing."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_fits_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(bench, "console", lambda: console)
    slow = {"median_ms": 1234.5, "p95_ms": 1500.0, "spread_ms": 0.01234, "items_per_second": 0.81}
    bench.print_bench(result(row("dense"), row("kernels", (12.111, 12.345, 13.0), **slow)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = next(line for line in lines if "kernels" in line).split()
    assert cells[1:7] == ["1,234", "1,500", "0.0123", "0.810", "12.35", "(12.11–13.00)"]
    assert cells[7:] == ["12.3", "MB"]


def test_what_is_not_known_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    bench.print_bench(result(row("dense", peak_memory=None)))
    text = capsys.readouterr().out
    assert text.splitlines()[4].split()[-2:] == ["1", "?"]
    assert "Interleaved" not in text


def test_modes_are_those_of_the_library() -> None:
    assert TORCH_MODES == MODES


def test_help_explains_everything() -> None:
    found = _run("--help")
    assert found.exit_code == 0
    for text in ("-ncores", "-x", "--torch", "dense counterpart", "Denormals", "Memory is the"):
        assert text in found.stdout
