from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from st3fx.cli import main
from st3fx.cli.views.display import LiveReport, PlainReport, make_report
from st3fx.cli.views.outcome import print_summary
from st3fx.cli.views.words import duration, headline, meter, size_text, spark
from st3fx.training.evaluate import Scores
from st3fx.training.report import EvalRow, Outline, TrainResult, TrainRow
from st3fx.training.settings import Settings
from tests.models import write
from tests.training.runs import NET


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with net.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "net.py", NET)
    return tmp_path


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["train", *args])


FAST = ("--epochs", "2", "--batch-size", "1000", "--log-interval", "3")


@pytest.mark.slow
def test_a_run_and_all_that_it_says(folder: Path) -> None:
    result = _run("net.py", *FAST)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "net on fashion-mnist-mini, on cpu, into runs/net; st3 to 90.0 % sparsity over 2 sites "
        "with 2,060 of 2,082 parameters, 2 epochs of 4 steps"
    )
    assert lines[1].startswith("epoch 1/2  step 3/8  loss ")
    assert "  sparsity 88.3 % of 90.0 %  threshold 0." in lines[1]
    assert lines[2].startswith("epoch 1/2  test loss ")
    assert lines[3].startswith("epoch 2/2  step 6/8  loss ")
    assert lines[4].startswith("epoch 2/2  test loss ")
    assert lines[4].endswith("sparsity 90.0 %  best")
    top1 = lines[4].partition("top-1 ")[2].partition("  ")[0]
    assert lines[5].startswith(f"net: top-1 {top1} (top-5 ")
    assert " at 90.0 % sparsity, 8 steps in 0:0" in lines[5]
    assert lines[6:8] == ["", "runs/net/"]
    shown = {line.split()[0] for line in lines[8:]}
    assert shown == {
        "model.st3fx", "folded.safetensors", "curves.png", "checkpoints/last.pt",
        "checkpoints/best.pt",
    }  # fmt: skip
    assert all((folder / "runs" / "net" / name).exists() for name in shown)


@pytest.mark.slow
def test_json_is_all_there_is(folder: Path) -> None:
    write(folder, "net.py", NET + "\n    print('hello from the model')\n")
    result = _run("net.py", *FAST, "--json", "-o", "out")
    data = json.loads(result.stdout)
    assert "hello from the model" in result.stderr
    assert "epoch 2/2  test loss" in result.stderr
    assert (data["name"], data["folder"], data["steps"]) == ("net", "out", 8)
    assert data["target"] == 0.9
    assert set(data["layers"]) == {"stem.weight", "head.weight"}
    assert data["files"]["folded.safetensors"] > data["dense_bytes"]
    assert data["compressed_bytes"] < data["dense_bytes"]
    # What it scored is what its checkpoint and its bundle score.
    again = json.loads(_run("--resume", "out", "--test-only", "--json").stdout)
    assert again["scores"] == data["scores"]
    bundle = _run("out/model.st3fx", "--test-only", "--json", "--bn-recalibrate", "0", *FAST)
    assert json.loads(bundle.stdout)["scores"] == data["scores"]
    assert json.loads(bundle.stdout)["sparsity"] == data["sparsity"]
    best = json.loads(_run("--resume", "out/checkpoints/best.pt", "--test-only", "--json").stdout)
    assert best["scores"]["top1"] == data["best"]["top1"]
    before = sorted(folder.rglob("*"))
    assert _run("net.py", "--test-only").exit_code == 0
    assert sorted(folder.rglob("*")) == before


SPELLINGS = {
    "--amp": ("precision", "bf16"),
    "--channels-last": ("channels_last", True),
    "--clip-grad 2": ("clip_grad", 2.0),
    "--smoothing 0.1": ("label_smoothing", 0.1),
    "--label-smoothing 0.1": ("label_smoothing", 0.1),
    "--sched constant": ("sched", "constant"),
    "--warmup-epochs 2": ("warmup_epochs", 2.0),
    "--lr-warmup-epochs 2": ("warmup_epochs", 2.0),
    "--model-ema": ("model_ema", True),
    "--torchcompile": ("torchcompile", True),
    "--data-path here": ("data_path", "here"),
    "--opt adamw": ("opt", "adamw"),
    "--wd 0.2": ("weight_decay", 0.2),
    "--norm-weight-decay 0": ("norm_weight_decay", 0.0),
    "--output-dir here": ("output_dir", "here"),
    "--sched multistep --milestones 3,5.5": ("milestones", (3.0, 5.5)),
    "--nesterov": ("nesterov", True),
    "--no-augment": ("augment", False),
    "--include a* --include b": ("include", ("a*", "b")),
    "--ramp 0.1,0.7": ("ramp", (0.1, 0.7)),
    "--target-sparsity 0.7": ("sparsity", 0.7),
    "--target-macs 0.7": ("budget", "macs"),
    "--method dst": ("method", "dst"),
    "--method-option alpha=1": ("method_options", ("alpha=1",)),
    "--granularity block:4": ("granularity", "block:4"),
    "--recipe st3-cifar": ("epochs", 160),
    "--recipe st3-cifar --epochs 7": ("epochs", 7),
    "-b 32 -j 2": ("workers", 2),
    "--grad-accum-steps 4": ("grad_accum_steps", 4),
    "--bn-recalibrate 0": ("bn_recalibrate", 0),
    "--checkpoint-every 9": ("checkpoint_every", 9),
    "--seed 5": ("seed", 5),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_names_that_users_type(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    seen: list[Settings] = []

    def take(settings: Settings, **_: Any) -> None:
        seen.append(settings)
        raise SystemExit(0)

    monkeypatch.setattr("st3fx.commands.train.train_spec", take)
    result = _run("net.py", *text.split())
    assert result.exit_code == 0, result.output
    name, value = SPELLINGS[text]
    assert getattr(seen[0], name) == value
    assert seen[0].spec == "net.py"
    assert seen[0].output_dir == ("here" if "output-dir" in text else "runs/net")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "error: no model: give a SPEC, e.g. st3fx:resnet20 or model.py"),
        ("modle.py", "error: no file modle.py"),
        ("st3fx:resnet21", "error: st3fx has no model 'resnet21'; did you mean "),
        ("net.py --data cifar11", "error: no data set 'cifar11'; did you mean cifar10"),
        ("net.py --data cifar10 --data-path nowhere", "error: "),
        ("net.py --epochs 0", "error: settings: epochs = 0: give 1 or more"),
        ("net.py --sparsity 1", "error: settings: sparsity = 1: give 0 or more and below 1"),
        ("net.py --config none.toml", "error: no settings file none.toml"),
        ("net.py --config odd.toml", "error: odd.toml has an unknown setting 'epoch'; did you m"),
        ("net.py -o taken", "error: taken is not empty and no run: choose another --output-dir"),
        ("net.py -o taken --force", "error: taken is not empty and no run: choose another --out"),
        ("--resume nowhere", "error: no run in nowhere: it has no settings.toml"),
        ("--resume", "error: --resume needs the folder of the run: --resume DIR"),
        ("net.py --resume", "error: no run in runs/net: it has no settings.toml"),
        ("net.py --resume x --config odd.toml", "error: --resume and --config: a run that goes"),
        ("net.py --method-option x", "error: --method-option 'x': give NAME=VALUE"),
        ("net.py --method dst --sparsity 0.5", "error: dst learns its thresholds, and has no s"),
        ("net.py --input 2x3x8x8", "error: Net refuses the example inputs"),
        ("net.py --log-with wandbb", "error: log_with = 'wandbb': Accelerate has no such trac"),
        ("taken", "error: taken is a folder: name the Python file"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(folder: Path, args: str, message: str) -> None:
    write(folder, "odd.toml", "epoch = 3")
    write(folder, "taken/diary.txt", "dear")
    before = sorted(folder.rglob("*"))
    result = _run(*args.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(message)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_flag_that_contradicts_the_run(folder: Path) -> None:
    assert _run("net.py", *FAST, "-o", "out").exit_code == 0
    result = _run("--resume", "out", "--lr", "0.5")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: out was started with lr = 0.1, which --resume cannot change to 0.5: leave the flag "
        "out, or start anew in another --output-dir\n"
    )
    assert _run("net.py", "--resume", "-o", "out", "--lr", "0.1", "-j", "0").exit_code == 0
    assert _run("net.py", *FAST, "-o", "out").exit_code == 2


@pytest.mark.slow
def test_a_broken_checkpoint_is_one_line(folder: Path) -> None:
    assert _run("net.py", *FAST, "-o", "out").exit_code == 0
    checkpoint = folder / "out" / "checkpoints" / "last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    result = _run("--resume", "out")
    assert result.exit_code == 2
    assert "last.pt has no digest of st3fx at its end" in result.stderr.splitlines()[-1]
    # The best one is the last here, and so the same file.
    assert "there is no earlier checkpoint that is whole" in result.stderr
    assert (folder / "out" / "checkpoints" / "best.pt").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        PlainReport,
        "step",
        lambda self, step: signal.raise_signal(signal.SIGINT) if step == 5 else None,
    )
    result = _run("net.py", *FAST, "-o", "my runs/a")
    assert result.exit_code == 130
    assert result.stderr == (
        "stopped by SIGINT, and saved: go on with st3fx train --resume 'my runs/a'\n"
    )
    assert torch.load(folder / "my runs/a/checkpoints/last.pt", weights_only=True)["step"] == 5
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    result = _run("--resume", "my runs/a", "--json")
    assert json.loads(result.stdout)["steps"] == 8
    assert "2 epochs of 4 steps, from step 5" in result.stderr


def test_a_bug_of_ours_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("st3fx.commands.train.train_spec", fail)
    result = _run("net.py")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_help_lists_every_option_under_its_heading() -> None:
    result = _run("--help")
    assert result.exit_code == 0
    headings = [line[:-1] for line in result.stdout.splitlines() if line.endswith(":") and
                not line.startswith(" ")]  # fmt: skip
    assert headings == ["Model", "Data", "Sparsity", "Optimisation", "Evaluation", "Machine",
                        "Run", "Options"]  # fmt: skip
    for option in main.commands["train"].params:
        assert option.name == "spec" or any(name in result.stdout for name in option.opts)
    assert "[SPEC]" not in result.stdout.partition("Options:")[2]


OUTLINE = Outline("net", "cifar10", Path("runs/net"), "st3", 0.9, "weights", 4, 400, 0, 20,
                  268_048, 269_434, "cpu")  # fmt: skip
ROW = TrainRow(100, 1.0, 0.75, 0.5, 0.1, 0.45, 0.45, 0.0123, 5000.0)
SCORE = EvalRow(100, 1, 0.5, 0.625, None, 0.45, False, False, ())


@pytest.mark.parametrize("width", [80, 120])
def test_the_panel_fits_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    report = LiveReport(console)
    report.stage("trace")
    with console.capture() as shown:
        console.print(report._render())
    assert "capturing graphs" in shown.get()
    report.begin(OUTLINE)
    for loss in (2.0, 1.5, 0.75):
        report.train(ROW.__class__(**{**ROW.__dict__, "loss": loss}))
    report.step(100)
    with console.capture() as capture:
        console.print(report._render())
    lines = capture.get().splitlines()
    assert len(lines) == 7
    assert {len(line.rstrip()) for line in lines} == {width - 2}  # ^C fits beside it
    text = "\n".join(lines)
    for part in ("net on cifar10", "step 100/400", " 25%", " left", "1 of 4", "45.0 % of 90.0 %",
                 "━━━━───", "0.7500 █▅▁", "50.0 %", "0.0123", "5,000 images/s", "cpu"):  # fmt: skip
        assert part in text, part
    report.evaluation(SCORE)
    report.note("stem.weight has no weight left")
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "epoch 1/4  test loss 0.5000  top-1 62.5 %  sparsity 45.0 %\n" in output
    assert "note: stem.weight has no weight left\n" in output
    report.end()


def test_lines_for_what_is_no_terminal() -> None:
    file = io.StringIO()
    report = make_report(file)
    assert isinstance(report, PlainReport)
    with report:
        report.begin(Outline(**{**OUTLINE.__dict__, "target": None, "method": "dst"}))
        report.step(100)
        report.train(TrainRow(**{**ROW.__dict__, "threshold": None}))
        report.note("a note")
        report.end()
    lines = file.getvalue().splitlines()
    assert lines[0].startswith("net on cifar10, on cpu, into runs/net; dst over 20 sites with")
    assert lines[1].startswith(
        "epoch 1/4  step 100/400  loss 0.7500  accuracy 50.0 %  sparsity 45.0 % of what it learns  "
        "threshold –  lr 0.1  5,000 images/s  0:00 left"
    )
    assert lines[2] == "note: a note"


def test_small_things() -> None:
    assert [duration(s) for s in (0.4, 59.6, 245, 3723)] == ["0:00", "1:00", "4:05", "1:02:03"]
    assert [size_text(s) for s in (8, 1480, 1_083_392, 5 * 10**9)] == [
        "8 B", "1.48 kB", "1.08 MB", "5 GB",
    ]  # fmt: skip
    assert spark([1.0, 1.0]) == "▁▁"
    assert meter(2.0, 3) == "━━━"


def test_one_is_no_plural() -> None:
    one = dataclasses.replace(OUTLINE, epochs=1, steps=1, sites=1)
    assert " over 1 site with " in headline(one)[1]
    assert headline(one)[1].endswith(" 1 epoch of 1 step")


def test_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    result = TrainResult(
        "net", Path("runs/net"), 400, 75.0, Scores(0.5, 0.625, None, 100), (0.7, 3), 0.75, 0.9,
        0.9, {"a": 1.0, "b": 0.5}, ("a",),
    )  # fmt: skip
    print_summary(result)
    assert capsys.readouterr().out == (
        "net: top-1 75.0 % dense, 62.5 % at 90.0 % sparsity; best 70.0 % after epoch 3, "
        "400 steps in 1:15\na has no weight left\n"
    )


def test_the_summary_says_how_far_own_targets_are_held(capsys: pytest.CaptureFixture[str]) -> None:
    result = TrainResult(
        "net", None, 4, 0.0, Scores(0.5, 0.625, None, 100), None, None, 0.9,
        0.9, {"a": 0.5, "b": 0.95, "c": 0.25}, (), {"a": 0.51, "b": 0.95},
    )  # fmt: skip
    print_summary(result)
    assert capsys.readouterr().out.splitlines()[1] == (
        "2 layers have targets of their own: held to 1.00 points (a: 50.00% of 51.00%)"
    )
    print_summary(dataclasses.replace(result, own={"b": 0.95}))
    assert capsys.readouterr().out.splitlines()[1] == "1 layer has a target of its own: held"


@pytest.mark.slow
def test_a_run_without_a_checkpoint_goes_on_from_its_start_and_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is after a kill, or a full disk, before the first epoch's end."""
    from st3fx.training.folder import RunFolder
    from st3fx.training.recipes import resolve

    values = {"spec": "net.py", "output_dir": "runs/net", "epochs": 1, "batch_size": 1000}
    RunFolder(Path("runs/net")).create(resolve(values))
    again = _run("net.py", "-o", "runs/net")
    assert again.exit_code == 2
    advice = again.stderr.partition("go on with it by ")[2].partition(",")[0].split()
    said = _run("--test-only", *advice)
    assert said.stderr.startswith("error: runs/net has no checkpoint yet to evaluate: st3fx train")
    (folder / "away").mkdir()
    monkeypatch.chdir(folder / "away")
    result = _run("--resume", "../runs/net", "--trust")
    assert result.exit_code == 0, result.output
    assert (folder / "runs" / "net" / "model.st3fx").is_dir()
