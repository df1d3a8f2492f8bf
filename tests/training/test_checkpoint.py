"""What is written is whole, belongs to its run, and is read without running anything."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import st3fx
from st3fx.commands.train import train_spec
from st3fx.errors import CheckpointError, TrainError
from st3fx.files.atomic import copy_file, replace_file
from st3fx.loading.spec import load_spec
from st3fx.training import saving as checkpoints
from st3fx.training.log import Log
from st3fx.training.saving import load_checkpoint
from tests.models import write
from tests.training.runs import (
    CrashError,
    Recorder,
    crash,
    folder_of,
    resumed,
    rows,
    settings,
    state,
)


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
    torch.save({**saved, "sites": ["stem.weight", "tail.weight"]}, path)
    with pytest.raises(CheckpointError, match=r"its sites differ, for example head.weight, tail"):
        resumed(one)
    torch.save({**saved, "processes": 4}, path)
    with pytest.raises(CheckpointError, match="of 4 processes, and now there are 1"):
        resumed(one)
    model = dict(saved["model"])
    model["head.weight"] = torch.zeros(3, 3)
    torch.save({**saved, "model": model}, path)
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
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged or not a checkpoint"):
            load_checkpoint(path)
    torch.save({"format": "st3fx-checkpoint", "code": Code()}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    for wrong, message in (
        ({"state_dict": {}}, "is not a checkpoint of st3fx train"),
        ({"format": "st3fx-checkpoint", "version": 9}, "written by another version"),
        ({"format": "st3fx-checkpoint", "version": 1}, "lacks average, batch, best, epoch and"),
    ):
        torch.save(wrong, path)
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
    assert log.commit() == 0
    log.append({"step": 1, "loss": 0.12345678, "best": True})
    size = log.commit()
    log.append({"step": 2})
    log.cut(size)
    assert log.rows() == [{"step": 1, "loss": 0.123457, "best": True}]
    log.path.write_text("")
    with pytest.raises(TrainError, match=r"metrics.jsonl is shorter than it was .* \(0 of "):
        log.cut(size)


@pytest.mark.slow
def test_a_folder_that_is_not_free(tmp_path: Path) -> None:
    one = settings(tmp_path, epochs=1)
    train_spec(one)
    with pytest.raises(TrainError, match=r"holds a run: go on with it by --resume .*--force"):
        train_spec(one)
    before = state(one)["model"]["head.weight"]
    for name in ("bench.json", "report.html", "notes.txt"):
        write(folder_of(one).path, name, "of the first run")
    train_spec(settings(tmp_path, epochs=1, seed=1), force=True)
    left = {path.name for path in folder_of(one).path.iterdir()}
    assert "notes.txt" in left
    assert not left & {"bench.json", "report.html"}, "they told of another run"
    assert not torch.equal(before, state(one)["model"]["head.weight"])
    other = write(tmp_path, "mine/diary.txt", "dear")
    with pytest.raises(TrainError, match="mine is not empty and no run"):
        train_spec(settings(tmp_path, output_dir=str(other.parent)), force=True)
    assert other.read_text() == "dear"


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
