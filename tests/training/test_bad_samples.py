"""Samples that cannot be read, or do not fit, stop a run in one line or are left out."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from st3fx.commands.train import evaluate_spec, train_spec
from st3fx.data.base import DataSettings, EpochSampler
from st3fx.data.guarded import following, guarded, heard
from st3fx.data.images import SeededDataset
from st3fx.data.table import make_data
from st3fx.errors import DataError, TrainError
from st3fx.training.settings import Settings, read_run
from tests.models import write
from tests.training.runs import (
    CrashError,
    Recorder,
    crash,
    folder_of,
    require_same_run,
    resumed,
    rows,
    settings,
)


class Odd(Dataset[Any]):
    """Sample 3 raises, 5 is of another shape, 7 of another type, 9 has a NaN."""

    def __init__(self) -> None:
        self.samples = [(f"images/{i}.png", i) for i in range(20)]

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 3:
            raise ValueError("no image\nat all")
        value = torch.full((2, 5) if index == 5 else (2, 4), float(index))
        value = value.double() if index == 7 else value
        return value.fill_(float("nan")) if index == 9 else value, index


def batches(
    dataset: Any, *, skip: bool, train: bool, workers: int = 0, **more: Any
) -> tuple[list[Any], list[Any]]:
    """What the batches hold, and what was bad."""
    loader = DataLoader(dataset, batch_size=more.pop("batch_size", 4), num_workers=workers, **more)
    told = [heard(t, "odd", skip=skip) for t in guarded(loader, skip=skip, train=train)]
    return [t.batch for t in told], [bad for t in told for bad in t.bad]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_others_stand_in_while_training(workers: int) -> None:
    found, bad = batches(Odd(), skip=True, train=True, workers=workers)
    assert [batch[1].tolist() for batch in found] == [
        [0, 1, 2, 4], [4, 6, 6, 8], [8, 10, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19],
    ]  # fmt: skip
    assert [one.index for one in bad] == [3, 5, 7, 9]
    assert bad[0].text == "sample 3 (images/3.png): ValueError: no image"
    assert (
        bad[1].reason == "it is (2x5 float32, int) where others of its batch are (2x4 float32, int)"
    )
    assert [one.reason for one in bad[2:]] == [
        "it is (2x4 float64, int) where others of its batch are (2x4 float32, int)",
        "it has NaN values",
    ]


def test_where_two_kinds_are_as_many_the_next_samples_decide() -> None:
    some = torch.utils.data.Subset(Odd(), [5, 6, 8, 10])
    found, bad = batches(some, skip=True, train=True, batch_size=2)
    assert [batch[1].tolist() for batch in found] == [[6, 6], [8, 10]]
    assert [one.index for one in bad] == [0]
    found, bad = batches(some, skip=True, train=False, batch_size=2)
    assert [batch[1].tolist() for batch in found] == [[6], [8, 10]]
    # Several are asked: the very next one may be bad too.
    some = torch.utils.data.Subset(Odd(), [5, 6, 5, 8, 10, 12])
    found, bad = batches(some, skip=True, train=True, batch_size=2)
    assert [batch[1].tolist() for batch in found] == [[6, 6], [8, 8], [10, 12]]
    assert [one.index for one in bad] == [0, 2]


def test_test_data_has_fewer() -> None:
    found, bad = batches(Odd(), skip=True, train=False)
    assert [batch[1].tolist() for batch in found[:3]] == [[0, 1, 2], [4, 6], [8, 10, 11]]
    assert len(bad) == 4
    found, _ = batches(Odd(), skip=True, train=False, batch_size=1)
    assert sum(batch is None for batch in found) == 2  # alone, another shape is none


def test_to_stop_is_one_line() -> None:
    with pytest.raises(DataError) as stopped:
        batches(Odd(), skip=False, train=True)
    assert str(stopped.value) == (
        "odd: sample 3 (images/3.png): ValueError: no image; mend it or take it out, or leave "
        "single bad samples out by --on-bad-sample skip"
    )


class Bad(Odd):
    """Nothing of it can be read."""

    def __getitem__(self, index: int) -> Any:
        raise OSError(5, "Input/output error", f"/data/{index}")


def test_all_bad_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no good sample .* sample 0 \(/data/0\)"):
        batches(Bad(), skip=True, train=True)
    found, bad = batches(Bad(), skip=True, train=False)
    assert found == [None] * 5
    assert len(bad) == 20


def test_what_fails_for_no_sample_is_said() -> None:
    def refuse(_: Any) -> Any:
        raise TypeError("not these")

    with pytest.raises(DataError, match="odd: no batch can be made: TypeError: not these"):
        batches(torch.utils.data.Subset(Odd(), [0, 1, 2, 4]), skip=True, train=True,
                collate_fn=refuse)  # fmt: skip


def test_batches_at_once_are_taken_apart_where_they_fail() -> None:
    class AtOnce(Odd):
        def __getitems__(self, numbers: list[int]) -> list[Any]:
            return [self[number] for number in numbers]

    found, bad = batches(AtOnce(), skip=True, train=True)
    assert [one.index for one in bad] == [3, 5, 7, 9]
    assert len(found) == 5


def test_the_epoch_stays_the_same() -> None:
    """Numbers past the end are samples of a later epoch: their stand-ins are of that, too."""
    sampler = EpochSampler(20, 0)
    sampler.epoch = 3
    order = [number % 20 for number in sampler]
    found, bad = batches(SeededDataset(Odd(), 0), skip=True, train=True, sampler=sampler)
    seen = torch.cat([batch[1] for batch in found]).tolist()
    assert [b for a, b in zip(order, seen, strict=True) if a not in (3, 5, 7, 9)] == [
        a for a in order if a not in (3, 5, 7, 9)
    ]
    assert sorted(one.index for one in bad) == [3, 5, 7, 9]
    assert bad[0].file == f"images/{bad[0].index}.png"


def test_sets_in_memory_are_left_alone() -> None:
    data = make_data(DataSettings("fashion-mnist-mini"))
    assert guarded(data.train, skip=True, train=True) is data.train


def test_a_loader_that_fails_is_one_line() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield torch.zeros(1)
            raise RuntimeError("the server\nhas gone")

    iterator = iter(DataLoader(Stream(), batch_size=1))
    assert following(iterator, "mine", 0) is not None
    with pytest.raises(DataError, match=r"^mine: batch 1 cannot be loaded: RuntimeError: the serv"):
        following(iterator, "mine", 1)


class Deadly(Odd):
    """Its process is killed, as the kernel does for want of memory."""

    def __getitem__(self, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_dead_process_is_one_line() -> None:
    iterator = iter(guarded(DataLoader(Deadly(), num_workers=1), skip=False, train=True))
    with pytest.raises(DataError, match=r"mine: a process that loads data has died .* --workers"):
        following(iterator, "mine", 0)


NET = """
    from torch import nn
    def net():
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes; in training the second file of ``a`` is cut, in the test the first of ``b``."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in "ab":
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    for name in ("train/a/1.png", "val/b/0.png"):
        file = tmp_path / "data" / name
        file.write_bytes(file.read_bytes()[:200])
    write(tmp_path, "net.py", NET)
    return tmp_path


def made(folder: Path, name: str, **values: Any) -> Settings:
    base = {
        "spec": f"{folder / 'net.py'}:net", "data": "imagefolder", "image_size": 16, "epochs": 2,
        "data_path": str(folder / "data"), "batch_size": 4, "bn_recalibrate": 1,
        "output_dir": str(folder / name), "checkpoint_every": 1,
    }  # fmt: skip
    return settings(folder, **(base | values))


def test_a_folder_stops_and_names_the_file(images: Path) -> None:
    with pytest.raises(DataError, match=r"train/a/1\.png\): OSError: image file is truncated"):
        train_spec(made(images, "stopped"))


def test_a_folder_goes_on_without_and_tells(images: Path) -> None:
    recorder, of = Recorder(), made(images, "whole", on_bad_sample="skip")
    result = train_spec(of, report=recorder)
    assert result.scores.samples == 5
    found = [row for row in rows(of) if row["kind"] == "bad"]
    assert [(row["part"], row["index"]) for row in found] == [("train", 1), ("test", 3)]
    assert found[1]["file"] == str(images / "data" / "val" / "b" / "0.png")
    assert any(note.startswith("1 bad test samples left out so far: 3") for note in recorder.notes)


@pytest.mark.slow
def test_a_resumed_run_leaves_the_same_out(images: Path) -> None:
    whole = made(images, "whole", on_bad_sample="skip")
    train_spec(whole)
    cut = made(images, "cut", on_bad_sample="skip", workers=2)
    with pytest.raises(CrashError):
        train_spec(cut, report=Recorder(3, crash))
    resumed(cut)
    require_same_run(whole, cut)


@pytest.mark.slow
@pytest.mark.parametrize(("other", "step"), [("val/b/0.png", 2), ("train/a/1.png", 4)])
def test_a_run_that_stopped_goes_on_without_the_sample(images: Path, other: str, step: int) -> None:
    shutil.copy(images / "data/val/a/0.png", images / "data" / other)  # one is bad, in either part
    whole = made(images, "whole", on_bad_sample="skip", seed=2)
    train_spec(whole)
    cut = made(images, "cut", checkpoint_every=None, seed=2)
    kept = (
        rf"skip; the checkpoint of step {step} is kept: go on with --resume \S+cut, with --on-bad"
    )
    for again in (False, True):  # it stops where it stopped
        with pytest.raises(DataError, match=kept):
            resumed(cut) if again else train_spec(cut)
    recorder = Recorder()
    resumed(dataclasses.replace(cut, on_bad_sample="skip"), recorder)
    assert f"on_bad_sample was stop until step {step}, and is skip from here" in recorder.notes
    require_same_run(whole, cut)
    assert read_run(folder_of(cut).settings).on_bad_sample == "skip"


def test_numbers_that_are_none_end_an_evaluation(images: Path) -> None:
    write(images, "nan.py", NET + """
    def broken():
        model = net()
        model[4].bias.data.fill_(float("nan"))
        return model
    """)  # fmt: skip
    of = made(images, "nan", spec=f"{images / 'nan.py'}:broken", on_bad_sample="skip")
    with pytest.raises(TrainError, match="the loss on the test data is nan"):
        evaluate_spec(of)


def test_a_target_that_is_missed_leaves_its_bundle(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st3fx.training.method.share", lambda *_: 0.5)
    of = made(images, "missed", on_bad_sample="skip", sparsity=0.8)
    with pytest.raises(TrainError, match=r"sparsity is 0\.5000 where 0\.8000 .* bundle is"):
        train_spec(of)
    assert (folder_of(of).bundle / "manifest.json").exists()
    assert folder_of(of).folded.exists()


def test_half_precision_is_refused_at_the_start(images: Path) -> None:
    write(images, "half.py", NET + """
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net().bfloat16()
        def forward(self, x):
            return self.inner(x.bfloat16()).float()
    """)  # fmt: skip
    of = made(images, "half", spec=f"{images / 'half.py'}:Half", on_bad_sample="skip")
    with pytest.raises(TrainError, match=r"inner\.0\.weight is bfloat16: .* \.float\(\).*--amp"):
        train_spec(of)
    assert not folder_of(of).path.exists()
