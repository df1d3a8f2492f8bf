"""The demo, very small: what it tells is what lies in its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

import st3fx
from st3fx.bench.bench_result import read_result
from st3fx.cli import main
from st3fx.commands.demo import DemoFolder, DemoResult, DemoSettings, run_demo
from st3fx.errors import TrainError
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.runtime.costs import QuantCosts
from st3fx.training.interrupt import Interrupted
from st3fx.training.report import Reporter
from tests.killed import ends, family
from tests.training.runs import Recorder, ctrl_c

TINY = DemoSettings("st3fx:lenet_300_100", epochs=2, batch_size=500, lr=0.1, bench_seconds=0.05)
STAGES = [
    "convert", "train dense", "train sparse", "fold", "export", "quantize", "analyze", "bench",
    "report",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def dear_dense() -> Iterator[None]:
    """Zeros gain in a small network too, on any CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "quant_costs", lambda: QuantCosts(call=0.0, dense=1e-9))
        yield


class Watch:
    """Keeps what it is told; stops one training at one step."""

    def __init__(self, run: int = 0, step: int | None = None) -> None:
        self.stages: list[str] = []
        self.results: dict[str, Any] = {}
        self._stops = {run: step}
        self._runs = 0

    def begin(self, stage: str, what: str) -> None:
        self.stages.append(stage)

    def progress(self, name: str) -> None:
        """Not kept."""

    @contextlib.contextmanager
    def training(self) -> Iterator[Reporter]:
        yield Recorder(self._stops.get(self._runs), ctrl_c)
        self._runs += 1

    def end(self, stage: str, result: Any) -> None:
        self.results[stage] = result


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Watch]:
    """A whole demo, once for all tests."""
    watch = Watch()
    torch.manual_seed(0)
    return run_demo(tmp_path_factory.mktemp("demo") / "whole", watch, TINY), watch


def _eval_rows(run: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "eval"]


@pytest.mark.slow
def test_its_stages(done: tuple[DemoResult, Watch]) -> None:
    result, watch = done
    assert watch.stages == STAGES == list(watch.results)
    assert watch.results["bench"] is result.timed


@pytest.mark.slow
def test_what_it_tells_is_what_lies_there(done: tuple[DemoResult, Watch]) -> None:
    result, _ = done
    folder = DemoFolder(result.folder, "lenet_300_100")
    for run, name in ((folder.dense, "dense"), (folder.sparse, "sparse")):
        trained = getattr(result, name)
        assert trained.scores.top1 == _eval_rows(run.path)[-1]["top1"] > 0.2  # chance is 0.1
    assert result.dense.sparsity == 0
    state = safetensors.torch.load_file(folder.sparse.folded)
    weights = [value for value in state.values() if value.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros / sum(map(torch.numel, weights)) == pytest.approx(0.9, abs=1e-4)
    assert result.sparse.sparsity == pytest.approx(0.9, abs=1e-4)
    before, after = result.bytes
    assert before == sum(value.nbytes for value in state.values())
    assert after == (folder.sparse.path / "model.st3w").stat().st_size < before / 5
    compact = st3fx.load_compact(folder.sparse.path / "model.st3w")
    assert all(torch.equal(compact[name], value) for name, value in state.items())
    counted = st3fx.count_flops(folder.sparse.path / "model.onnx", [(1, 1, 28, 28)])
    assert result.counted.dense_macs == counted.dense_macs == 784 * 300 + 300 * 100 + 100 * 10
    assert result.counted.sparse_macs == counted.sparse_macs < counted.dense_macs / 9
    assert read_result(folder.sparse.path / "bench.json") == result.timed
    assert (result.timed.rows[0].name, result.timed.rows[0].batch) == ("dense", 1)
    assert (result.fastest.name != "dense", result.fastest.integers) == (True, False)
    assert result.timed.rows[-1].name == "sparse INT8 kernels"
    assert [row.name for row in result.integers] == ["dense INT8", "sparse INT8 kernels"]
    for name in ("model.int8.onnx", "model.int8.sparse.onnx"):
        assert (folder.sparse.path / name).is_file()
    assert result.quantized.accuracy is not None
    assert result.quantized.accuracy.fp32 == result.sparse.scores.top1
    # Blocks of four, by the folded weights themselves.
    for weight in weights:
        blocks = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 4))
        zeros_in = (blocks.reshape(len(weight), -1, 4) == 0).sum(2)
        assert set(zeros_in.unique().tolist()) <= {0, 4}
    page = folder.report.read_text(encoding="utf-8")
    assert f"{100 * result.sparse.scores.top1:.1f}" in page
    assert not [name for name, missing in result.report.sections.items() if missing]


@pytest.mark.slow
def test_both_trainings_begin_with_the_same_weights(done: tuple[DemoResult, Watch]) -> None:
    settings = [(done[0].folder / name / "settings.toml").read_text() for name in
                ("dense", "sparse")]  # fmt: skip
    lines = [{line for line in text.splitlines() if " = " in line} for text in settings]
    names = {line.partition(" = ")[0] for line in lines[0] ^ lines[1]}
    assert names == {"sparsity", "output_dir"}
    assert any("lenet_300_100.st3fx" in line for line in lines[0] & lines[1])


@pytest.mark.slow
def test_a_demo_that_was_stopped_ends_as_if_it_had_not(
    done: tuple[DemoResult, Watch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        run_demo(tmp_path / "demo", Watch(0, 5), TINY)
    with pytest.raises(TrainError, match="holds a demo: go on with it by st3fx demo --resume -o "):
        run_demo(tmp_path / "demo", Watch(), TINY)
    with pytest.raises(TrainError, match="with --seed 0, which --resume cannot change to 1"):
        run_demo(tmp_path / "demo", Watch(), dataclasses.replace(TINY, seed=1), again=True)
    # From another folder, by another path.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(Interrupted):
        run_demo("../demo", Watch(1, 11), TINY, again=True)
    watch = Watch()
    result = run_demo(tmp_path / "demo", watch, TINY, again=True)
    assert watch.stages == STAGES[1:]
    whole, _ = done
    assert result.sparse.scores == whole.sparse.scores
    for name in ("sparse/folded.safetensors", "dense/folded.safetensors", "sparse/model.st3w"):
        assert (result.folder / name).read_bytes() == (whole.folder / name).read_bytes()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("how", [{"again": True}, {"force": True}, {}])
def test_a_demo_that_was_killed_while_it_converted_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    """What it left half-written is known as ours, and its lock is not held any more."""
    from st3fx.files.atomic import _make

    (tmp_path / "demo").mkdir()
    _, lock = _make(tmp_path / "demo" / "lenet_300_100.st3fx", 0o700)
    lock.release()
    assert list((tmp_path / "demo").iterdir())

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    monkeypatch.setattr("st3fx.commands.demo.convert_spec", killed)
    with pytest.raises(KilledError):
        run_demo(tmp_path / "demo", Watch(), TINY, **how)
    assert not list((tmp_path / "demo").iterdir())


def test_a_folder_with_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    for again, force in ((False, False), (True, False), (False, True)):
        with pytest.raises(TrainError, match="is not empty and no demo"):
            run_demo(tmp_path, Watch(), TINY, again=again, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def _run(monkeypatch: pytest.MonkeyPatch, *args: str) -> Result:
    tiny = functools.partial(dataclasses.replace, TINY)
    monkeypatch.setattr("st3fx.commands.demo.DemoSettings", tiny)
    return CliRunner().invoke(main, ["demo", *args])


@pytest.mark.slow
def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(monkeypatch)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    begins = [line.split("  ")[0] for line in lines if line.split("  ")[0] in STAGES]
    assert list(dict.fromkeys(begins)) == STAGES
    assert "step " not in result.stdout  # a line for each epoch and none within
    last = [line for line in lines if line.startswith(" latency")][-1]
    assert last.split()[:2] == ["latency,", "INT8,"]
    assert "times as fast, " in last
    assert last.endswith(" against fp32")
    top1 = [_eval_rows(Path("st3fx-demo") / name)[-1]["top1"] for name in ("dense", "sparse")]
    row = next(line for line in lines if line.startswith(" accuracy"))
    points = f"{100 * (top1[1] - top1[0]):+.1f}"
    assert row.split() == ["accuracy", f"{100 * top1[0]:.1f}", "%", f"{100 * top1[1]:.1f}", "%",
                           points, "points"]  # fmt: skip
    assert lines[-1].endswith("; read on in st3fx-demo/report.html")
    again = _run(monkeypatch)
    assert again.exit_code == 2
    assert again.stderr.startswith("error: st3fx-demo holds a demo: go on with it by st3fx demo")
    data = json.loads(_run(monkeypatch, "--resume", "--json").stdout)
    assert data["accuracy"].pop("sparse_int8") == pytest.approx(top1[1], abs=0.02)
    assert data["accuracy"] == {"dense": top1[0], "sparse": top1[1]}
    assert data["report"] == "st3fx-demo/report.html"


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "st3fx.cli.views.display.PlainReport.step",
        lambda self, step: signal.raise_signal(signal.SIGINT),
    )
    result = _run(monkeypatch, "-o", "my demo", "--seed", "3")
    assert result.exit_code == 130
    assert result.stderr == (
        "stopped; what is done is kept: go on with st3fx demo --resume -o 'my demo' --seed 3\n"
    )


PARENT = """
import dataclasses, sys
from st3fx.bench.rounds import Process
from st3fx.commands.demo import run_demo
from tests.commands.test_demo import TINY, Watch
warm = Process.warm
def warming(self, seconds):
    print(self._process.pid, flush=True)
    return warm(self, seconds)
Process.warm = warming
run_demo(sys.argv[1], Watch(), dataclasses.replace(TINY, epochs=1, bench_seconds=1e6))
"""


@pytest.mark.slow
def test_a_worker_ends_with_a_demo_that_is_killed(tmp_path: Path) -> None:
    with family("-c", PARENT, str(tmp_path / "demo")) as (parent, worker):
        assert not ends(worker, seconds=1.0)
        parent.kill()
        assert ends(worker)
