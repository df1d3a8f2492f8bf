"""What is written is whole, belongs to its run, and is read without running anything."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file

import st3fx
from st3fx.commands.train import train_spec
from st3fx.errors import CheckpointError, TrainError
from st3fx.export.write import save_proto
from st3fx.files.atomic import copy_file, replace_file
from st3fx.loading.spec import load_spec
from st3fx.training import saving as checkpoints
from st3fx.training.folder import LOCK
from st3fx.training.log import Log
from st3fx.training.report import TrainRow
from st3fx.training.saving import load_checkpoint
from tests.models import write
from tests.training.runs import (
    LOADERS,
    CrashError,
    Recorder,
    crash,
    folder_of,
    require_same_run,
    resumed,
    rows,
    save_state,
    settings,
    state,
)


def raising(error: Exception) -> Callable[..., Any]:
    def do(*_: object) -> Any:
        raise error

    return do


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_the_files_of_a_run(tmp_path: Path) -> None:
    one = settings(tmp_path, epochs=2)
    result = train_spec(one)
    folder = folder_of(one)
    files = {str(p.relative_to(folder.path)) for p in folder.path.rglob("*") if p.is_file()}
    events = [name for name in files if name.startswith("tensorboard/events.")]
    assert files - set(events) == {
        "settings.toml", "metrics.jsonl", "curves.png", "folded.safetensors",
        "checkpoints/last.pt", "checkpoints/best.pt",
        "model.st3fx/manifest.json", "model.st3fx/model.safetensors", "model.st3fx/graph.txt",
    }  # fmt: skip
    assert len(events) == 1
    assert folder.curves.read_bytes()[:4] == b"\x89PNG"
    assert [(r["kind"], r["step"]) for r in rows(one)] == [
        ("train", 2), ("train", 4), ("eval", 5), ("train", 6), ("train", 8), ("train", 10),
        ("eval", 10),
    ]  # fmt: skip
    # The folded weights are the bundle's, in the user's own class.
    plain = load_spec(one.spec).model
    plain.load_state_dict(load_file(folder.folded), strict=True)
    x = torch.randn(3, 1, 28, 28)
    trained = st3fx.load_bundle(folder.bundle)
    assert torch.equal(plain.eval()(x), trained.eval()(x))
    state_dict = plain.state_dict()
    zeros = sum(int((state_dict[n] == 0).sum()) for n in ("stem.weight", "head.weight"))
    assert zeros / 2060 == result.sparsity == st3fx.Sparsifier(trained).sparsity
    assert abs(result.sparsity - 0.9) < 1e-3


@pytest.mark.slow
def test_logits_sparsity_and_threshold_come_back(tmp_path: Path) -> None:
    """A checkpoint in the middle of the ramp, loaded into a fresh model, goes on as the first."""
    one = settings(tmp_path, checkpoint_every=3)
    with pytest.raises(CrashError):
        train_spec(one, report=Recorder(4, crash))
    saved = load_checkpoint(folder_of(one).last)
    assert saved.step == 3

    def fresh() -> tuple[Any, st3fx.Sparsifier]:
        x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
        return st3fx.convert(load_spec(one.spec, seed=5).model, x, total_steps=15)

    first, sparsifier = fresh()
    first.load_state_dict(saved.model)
    buffer = tmp_path / "again.pt"
    torch.save(first.state_dict(), buffer)
    second, its_sparsifier = fresh()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(5, 1, 28, 28)
    assert torch.equal(first.eval()(x), second.eval()(x))
    assert 0 < sparsifier.sparsity == its_sparsifier.sparsity < 0.9
    sparsifier.step()
    its_sparsifier.step()
    assert sparsifier.steps == its_sparsifier.steps == 4
    assert sparsifier.thresholds == its_sparsifier.thresholds
    assert sparsifier.level is not None
    assert its_sparsifier.level is not None
    assert float(sparsifier.level) == float(its_sparsifier.level)


@pytest.mark.slow
def test_settings_that_the_weights_depend_on_stay(tmp_path: Path) -> None:
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    with pytest.raises(CheckpointError, match=r"last.pt was trained with lr = 0.1, and it is 0.2"):
        resumed(settings(tmp_path, epochs=1, lr=0.2))
    with pytest.raises(CheckpointError, match=r"with epochs = 1, and it is 2 now: put it back"):
        resumed(settings(tmp_path, epochs=2))
    resumed(settings(tmp_path, epochs=1, checkpoint_every=7))


@pytest.mark.slow
def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    path = folder_of(one).last
    saved = state(one)
    save_state(path, {**saved, "sites": ["stem.weight", "tail.weight"]})
    with pytest.raises(CheckpointError, match=r"its sites differ, for example head.weight, tail"):
        resumed(one)
    save_state(path, {**saved, "processes": 4})
    with pytest.raises(CheckpointError, match="of 4 processes, and now there are 1"):
        resumed(one)
    groups = saved["optimizer"]["param_groups"]
    wrongs: list[Any] = [False, [], [{}] * len(groups), [{**own, "params": 1} for own in groups]]
    for wrong in wrongs:
        save_state(path, {**saved, "optimizer": {**saved["optimizer"], "param_groups": wrong}})
        with pytest.raises(CheckpointError, match="the checkpoint is of another model"):
            resumed(one)
    model = dict(saved["model"])
    model["head.weight"] = torch.zeros(3, 3)
    save_state(path, {**saved, "model": model})
    with pytest.raises(CheckpointError, match="the checkpoint is of another model: RuntimeError"):
        resumed(one)


class Code:
    """A pickle of it would run something."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


@pytest.mark.slow
def test_what_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = settings(tmp_path, epochs=1)
    train_spec(good)
    path = folder_of(good).last
    content = path.read_bytes()
    for damaged in (content[:-100], content[: len(content) // 2], b"", b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt has no digest of st3fx at its end"):
            load_checkpoint(path)
    chance = random.Random(0)
    for _ in range(50):
        place = chance.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"last\.pt (was damaged or edited|has no dig)"):
            load_checkpoint(path)
    save_state(path, {"format": "st3fx-checkpoint", "code": Code()})
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    for wrong, message in (
        ({"state_dict": {}}, "is not a checkpoint of st3fx train"),
        ({"format": "st3fx-checkpoint", "version": 9}, "written by another version"),
        ({"format": "st3fx-checkpoint", "version": 2}, "lacks average, batch, best, epoch and"),
    ):
        save_state(path, wrong)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint "):
        load_checkpoint(path)


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    one = settings(tmp_path, checkpoint_every=2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        # Files may not grow beyond this: the log still fits, a checkpoint does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    try:
        with pytest.raises(CheckpointError, match=r"last.pt: File too large; .* of step 2 is kept"):
            train_spec(one, report=Recorder(4, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(folder_of(one).last).step == 2
    assert [p.name for p in folder_of(one).last.parent.iterdir()] == ["last.pt"]
    whole = settings(tmp_path, output_dir=str(tmp_path / "whole"))
    train_spec(whole)
    resumed(one)
    assert rows(one) == rows(whole)


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"old"))
    seen = []

    def write_new(file: Any) -> None:
        file.write(b"new, half")
        file.flush()
        seen.append(path.read_bytes())
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, write_new)
    assert seen == [b"old"] == [path.read_bytes()]
    assert names(tmp_path) == ["file"]
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert len(synced) == 2  # the file before, its folder after the rename


@pytest.mark.parametrize("links", [True, False])
def test_best_is_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(*args: Any) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    source, target = tmp_path / "best.pt", tmp_path / "last.pt"
    source.write_bytes(b"1")
    target.write_bytes(b"0")
    copy_file(source, target)
    assert target.read_bytes() == b"1"
    replace_file(target, lambda file: file.write(b"2"))
    assert source.read_bytes() == b"1"
    assert names(tmp_path) == ["best.pt", "last.pt"]


@pytest.mark.slow
def test_the_best_is_one_at_the_full_sparsity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early epochs score best while they are dense; they do not count."""
    from st3fx.training import loop
    from st3fx.training.evaluate import Scores

    tops = iter([0.9, 0.8, 0.3, 0.5, 0.4, 0.4])
    monkeypatch.setattr(loop, "evaluate", lambda *args, **kwargs: Scores(1.0, next(tops), None, 10))
    one = settings(tmp_path, epochs=5, ramp=(0.0, 0.5))
    report = Recorder()
    result = train_spec(one, report=report)
    assert [(row.top1, row.at_target, row.best) for row in report.scores] == [
        (0.9, False, False), (0.8, False, False), (0.3, True, True), (0.5, True, True),
        (0.4, True, False),
    ]  # fmt: skip
    assert result.best == (0.5, 4)
    best = load_checkpoint(folder_of(one).best)
    assert (best.epoch, best.step, best.best) == (4, 20, 0.5)
    assert load_checkpoint(folder_of(one).last).step == 25


def test_the_log_is_cut_back(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    assert log.commit()[0] == 0
    first = TrainRow(1, 0.1, 0.12345678, 0.5, 0.1, 0.0, None, None, 9.0).to_dict()
    log.append(first)
    size, digest = log.commit()
    log.append({**first, "step": 2})
    log.cut(size, digest)
    assert log.rows() == [{**first, "loss": 0.123457}]
    whole = log.path.read_bytes()
    log.path.write_bytes(whole.replace(b"0.123457", b"0.123456"))
    with pytest.raises(TrainError, match=r"metrics.jsonl was damaged or edited since the check"):
        log.cut(size, digest)
    log.path.write_text("")
    with pytest.raises(TrainError, match=r"metrics.jsonl is shorter than it was .* \(0 of "):
        log.cut(size, digest)
    log.cut(size, digest, accepted=True)
    assert log.rows() == []
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(TrainError, match="is a folder, not a file"):
        log.cut(1, digest)


def test_a_row_that_was_changed_is_noticed_by_all_who_read_it(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    first = TrainRow(1, 0.1, 0.12345678, 0.5, 0.1, 0.0, None, None, 9.0).to_dict()
    for step in (1, 2, 3):
        Log(log.path).append({**first, "step": step})
    size, digest = log.commit()
    whole = log.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [row["step"] for row in log.rows()] == [1, 2, 3]
    for odd in (
        whole.replace(b"0.123457", b"0.123456", 1),
        lines[0] + lines[2],
        lines[0] + lines[0] + lines[1],
        lines[1] + lines[0] + lines[2],
        whole.replace(b'"digest": "', b'"digest": "0', 1),
        whole.replace(b"digest", b"digesT", 1),
    ):
        log.path.write_bytes(odd)
        with pytest.raises(TrainError, match=r"metrics.jsonl, line \d"):
            log.rows()
    log.path.write_bytes(lines[0])
    assert [row["step"] for row in log.rows()] == [1]  # as it was after one row
    log.path.write_bytes(lines[0] + lines[2] + lines[1] + lines[2])
    log.cut(size, digest, accepted=True)
    assert [row["step"] for row in log.rows()] == [1, 3, 2]
    log.append(first)
    assert [row["step"] for row in log.rows()] == [1, 3, 2, 1]


@pytest.mark.slow
def test_a_folder_that_is_not_free(tmp_path: Path) -> None:
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    with pytest.raises(TrainError, match=r"holds a run: go on with it by --resume .*--force"):
        train_spec(one)
    before = state(one)["model"]["head.weight"]
    folder, mine = folder_of(one).path, ("notes.txt", "model.int8.onnx", ".x.old", ".y.part")
    for name in mine:
        write(folder, name, "not written by st3fx")
    write(folder, "bench.json", '{"format": "st3fx-bench"}')
    write(folder, "report.html", "<!-- st3fx report 1 -->")
    save_proto(onnx.ModelProto(), folder / "model.onnx")
    (folder / "model.onnx.data").write_text("weights")
    (folder / "tensorboard" / "mine").write_text("")
    train_spec(settings(tmp_path, epochs=1, seed=1), force=True)
    left = {path.name for path in folder.iterdir()}
    assert left >= {*mine}
    assert not left & {"bench.json", "report.html", "model.onnx", "model.onnx.data"}
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert not torch.equal(before, state(one)["model"]["head.weight"])
    other = write(tmp_path, "mine/diary.txt", "dear")
    with pytest.raises(TrainError, match="mine is not empty and no run"):
        train_spec(settings(tmp_path, output_dir=str(other.parent)), force=True)
    assert other.read_text() == "dear"


@pytest.mark.slow
def test_files_of_others_where_a_run_writes(tmp_path: Path) -> None:
    """They are said before anything is trained, whether the run begins or goes on."""
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    folder = folder_of(one)
    kept = folder.curves.read_bytes()
    for path in (folder.curves, folder.bundle / "notes.txt"):
        path.write_text("mine")
        with pytest.raises(TrainError, match=rf"{path.name} was not written by st3fx, and st"):
            train_spec(one, force=True)
        with pytest.raises(TrainError, match=rf"{path.name} was not written by st3fx, and st"):
            resumed(one)
        assert path.read_text() == "mine"
        path.unlink()
        folder.curves.write_bytes(kept)
    folder.settings.write_text('[tool]\nspec = "x"\n')
    with pytest.raises(TrainError, match=r"settings.toml is not as st3fx train wrote it"):
        train_spec(one, force=True)


@pytest.mark.slow
def test_the_best_one_where_the_newest_is_damaged(tmp_path: Path) -> None:
    one, whole = (settings(tmp_path, output_dir=str(tmp_path / name)) for name in ("a", "b"))
    for each in (one, whole):
        train_spec(each)
    folder = folder_of(one)
    if folder.best.samefile(folder.last):
        shutil.copy(folder.best, tmp_path / "copy")
        (tmp_path / "copy").replace(folder.best)
    content = bytearray(folder.last.read_bytes())
    content[len(content) // 2] ^= 4
    folder.last.write_bytes(content)
    report = Recorder()
    resumed(one, report)
    assert "last.pt was damaged or edited" in report.notes[0]
    assert "the run goes on from" in report.notes[0]
    require_same_run(one, whole)
    with pytest.MonkeyPatch.context() as patch:  # what the machine lacks is no damage
        lacking = OSError(errno.EMFILE, "Too many open files", str(folder.last))
        patch.setattr(checkpoints, "check_sealed", raising(lacking))
        with pytest.raises(CheckpointError, match=r"cannot read \S*last.pt: too many open .*4096$"):
            resumed(one)
    for path in (folder.last, folder.best):
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last.pt was damaged .* no earlier checkpoint that"):
        resumed(one)


@pytest.mark.slow
def test_what_a_run_is_made_from_is_said_to_have_changed(tmp_path: Path) -> None:
    loaders = write(tmp_path, "loaders.py", LOADERS)
    one = settings(tmp_path, epochs=2, batch_size=30, data=str(loaders))
    with pytest.raises(CrashError):
        train_spec(one, report=Recorder(6, crash))
    model, log = Path(one.spec), folder_of(one).log
    for path, message in ((model, "the model's source was"), (loaders, "the data was"), (log, "")):
        before = path.read_bytes()
        path.write_bytes(before.replace(b'"loss"', b'"Loss"') if path == log else before + b"\n#")
        wanted = f"{message} changed since .*--accept-changes" if message else "was damaged or ed"
        with pytest.raises(TrainError, match=wanted):
            resumed(one)
        path.write_bytes(before)
    for path in (model, loaders):
        path.write_bytes(path.read_bytes() + b"\n#")
    report = Recorder()
    train_spec(one, checkpoint=folder_of(one).last, report=report, accept_changes=True)
    assert "the model's source and the data were changed since" in report.notes[0]


@pytest.mark.slow
def test_two_trainings_into_one_folder(tmp_path: Path) -> None:
    """The second is refused at once and changes nothing; a file that a dead one left keeps none."""
    one = settings(tmp_path, epochs=1)

    def again() -> None:
        with pytest.raises(TrainError, match=rf"is being trained by process {os.getpid()} on"):
            train_spec(one, force=True)
        with pytest.raises(TrainError, match=rf"is being trained by process {os.getpid()} on"):
            resumed(one)

    train_spec(one)
    (folder_of(one).path / LOCK).write_text("process 1 on mars")
    train_spec(one, force=True, report=Recorder(2, again))
    assert not (folder_of(one).path / LOCK).exists()


def test_nothing_is_written_by_what_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for values, message in (
        ({"data": "cifar10", "data_path": str(tmp_path / "none")}, "none"),
        ({"weights": "none.pt"}, "no weight file none.pt"),
        ({"channels": 3}, "Net refuses the example inputs.* fashion-mnist-mini gives inputs 2x3"),
        ({"method": "dst", "sparsity": 0.5}, "dst learns its thresholds, and has no sparsity"),
        ({"log_with": ("wandbb",)}, "Accelerate has no such tracker; did you mean wandb"),
        ({"precision": "fp16"}, "precision = fp16 needs a GPU"),
    ):
        with pytest.raises(st3fx.St3fxError, match=message):
            train_spec(settings(tmp_path, **values))
        assert not (tmp_path / "run").exists()


def test_reason_is_that_of_the_system() -> None:
    outer = RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0")
    assert checkpoints.reason(outer) == "unexpected pos 64 vs 0"
    outer.__context__ = OSError(28, "No space left on device")
    assert checkpoints.reason(outer) == "No space left on device"
