"""Shards and saved data sets: the same samples as a folder of the same images gives."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from st3fx.data import Data, DataSettings, make_data
from st3fx.errors import DataError
from st3fx.training.batches import Batches, EvalBatches
from st3fx.training.origin import origin_of
from tests.data.made_images import (
    contents,
    parts,
    write_folder,
    write_saved,
    write_shards,
    write_tar,
)
from tests.data_helpers import everything, make

MAKERS: dict[str, Callable[[Path], Path]] = {
    "imagefolder": write_folder, "webdataset": write_shards, "huggingface": write_saved,
}  # fmt: skip
NEW = ("webdataset", "huggingface")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images in each form."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in MAKERS.items()}


@pytest.mark.parametrize("name", NEW)
def test_it_gives_what_a_folder_gives(places: dict[str, Path], name: str) -> None:
    folder = make("imagefolder", places["imagefolder"], image_size=14)
    data = make(name, places[name], image_size=14)
    assert (data.input_shape, data.num_classes) == (folder.input_shape, folder.num_classes)
    for epoch in (0, 1):
        folder.set_epoch(epoch)
        data.set_epoch(epoch)
        for one, other in zip(everything(data.train), everything(folder.train), strict=True):
            assert torch.equal(one, other)
    for one, other in zip(everything(data.test), everything(folder.test), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NEW)
def test_processes_that_load_give_the_same(places: dict[str, Path], name: str) -> None:
    here = make(name, places[name], image_size=8)
    there = make(name, places[name], image_size=8, workers=1)
    for epoch in (0, 2):
        here.set_epoch(epoch)
        there.set_epoch(epoch)
        for one, other in zip(everything(here.train), everything(there.train), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", NEW)
def test_an_epoch_goes_on_in_its_middle(places: dict[str, Path], name: str) -> None:
    def batches() -> Batches:
        return Batches(make(name, places[name], image_size=8), Accelerator(cpu=True), seed=3)

    whole = list(batches().epoch(1))
    assert len(whole) == 3
    rest = list(batches().epoch(1, skip=1))
    assert [number for number, _ in rest] == [1, 2]
    for (_, one), (_, other) in zip(whole[1:], rest, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def origin(name: str, place: Path) -> str:
    return origin_of(torch.nn.Linear(1, 1), None, make(name, place, image_size=8))["the data"]


@pytest.mark.parametrize("name", NEW)
def test_a_change_of_the_data_is_noticed(
    places: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = origin(name, places[name])
    assert before == origin(name, places[name])
    changed = parts()
    changed["train"][0] = contents(1, seed=9)[0]
    monkeypatch.setattr("tests.data.made_images.parts", lambda: changed)
    assert origin(name, MAKERS[name](tmp_path)) != before


def broken(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("name", NEW)
def test_a_bad_image_is_named_or_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = parts()
    for part, index in (("train", 2), ("val", 5)):
        content, label = damaged[part][index]
        damaged[part][index] = (broken(content), label)
    monkeypatch.setattr("tests.data.made_images.parts", lambda: damaged)
    MAKERS[name](tmp_path)
    data = make(name, tmp_path, image_size=8)
    where = r"train.0000\.tar, byte \d+" if name == "webdataset" else "train, row 2"
    strict = Batches(data, Accelerator(cpu=True), seed=0)
    with pytest.raises(DataError, match=rf"sample 2 \(.*{where}\): OSError: image file is trunc"):
        list(strict.epoch(0))
    skipping = Batches(data, Accelerator(cpu=True), seed=0, skip=True)
    found, labels = [], 0
    for _, batch in skipping.epoch(0):
        found += [bad.index for bad in skipping.bad]
        labels += len(batch[1])
    assert (found, labels) == ([2], 12)
    tests = EvalBatches(data, Accelerator(cpu=True), skip=True)
    assert sum(len(batch[1]) for batch in tests) == 5
    assert [bad.index for bad in tests.bad] == [5]


def test_shards_of_both_parts_may_lie_in_one_folder(tmp_path: Path) -> None:
    write_shards(tmp_path / "a")
    for part, name in (("train", "imagenet1k-train"), ("val", "imagenet1k-validation")):
        for path in (tmp_path / "a" / part).iterdir():
            path.rename(tmp_path / f"{name}-{path.name}")
    data = make("webdataset", tmp_path, image_size=8)
    assert (len(data.train.dataset), len(data.test.dataset)) == (12, 6)  # type: ignore[arg-type]


def test_long_names_folders_and_other_members_are_known(tmp_path: Path) -> None:
    content, _ = contents(1, 0)[0]
    grey = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("L").save(grey, "JPEG")
    deep = f"{'d' * 120}/{'n' * 90}"
    for part in ("train", "val"):
        write_tar(tmp_path / part / "0.tar", [
            (f"{deep}.JPEG", grey.getvalue()), (f"{deep}.cls", b"1"), (f"{deep}.json", b"{}"),
            ("b.seg.png", content), ("b.png", content), ("b.cls", b" 0 "), (".hidden", b""),
            *((f"more{i}.{kind}", data) for i in range(2)
              for kind, data in (("cls", b"0"), ("png", content))),
        ])  # fmt: skip
    data = make("webdataset", tmp_path, image_size=8)
    images, labels = everything(data.test)
    assert labels.tolist() == [1, 0, 0, 0]
    assert torch.equal(images[1], images[2])
    # The grey one is in colour, of equal channels.
    own = images[0] * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    own += torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    torch.testing.assert_close(own[0], own[1])


def _tar_of(*members: tuple[str, bytes]) -> Callable[[Path], None]:
    return lambda root: write_tar(root / "train" / "0000.tar", members)


PNG = contents(1, 0)[0][0]


def _flip_head(root: Path) -> None:
    path = root / "train" / "0001.tar"
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[third + 150] ^= 1
    path.write_bytes(content)


def _cut(root: Path) -> None:
    path = root / "train" / "0001.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2]
    path.write_bytes(path.read_bytes()[: last.offset_data + 100])


def _pipe(root: Path) -> None:
    (root / "train" / "0000.tar").unlink()
    os.mkfifo(root / "train" / "0000.tar")


def _with_holes(root: Path) -> None:
    """A member whose head says that it has terabytes, of which none are there."""
    head = tarfile.TarInfo("a.png")
    head.type, head.size = tarfile.GNUTYPE_SPARSE, 512
    content = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    content[386:398] = content[398:410] = b"00000000000\0"  # of one part, and no byte
    content[483:495] = b"7" * 11 + b"\0"  # the size with its holes
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    (root / "train" / "0000.tar").write_bytes(bytes(content) + bytes(512 + 1024))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pipe, r"0000\.tar is not a shard, or is damaged \(.*is a pipe, not a file"),
        (_with_holes, r"0000\.tar is not a shard, or is damaged \(.*'a.png' has holes"),
        (_tar_of(("a.png", PNG)), r"0000\.tar: the sample 'a' has no class"),
        (_tar_of(("a.cls", b"1")), r"the sample 'a' has 0 images"),
        (_tar_of(("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")), "has 2 images"),
        (_tar_of(("a.png", PNG), ("a.cls", b"dog")), r"the class of 'a' is b'dog', not a number"),
        (_tar_of(("a.png", PNG), ("a.cls", b"-1")), r"is b'-1', not a number from 0"),
        (_tar_of(), None),
        (_flip_head, r"0001\.tar is not a shard, or is damaged"),
        (_cut, r"0001\.tar is not a shard, or is damaged"),
        (lambda root: (root / "train" / "0000.tar").write_bytes(b"no tar at all"), "not a shard"),
        (lambda root: (root / "val" / "0000.tar").rename(root / "x"), None),
    ],
)
def test_a_damaged_shard_is_one_line(
    tmp_path: Path, damage: Callable[[Path], Any], message: str | None
) -> None:
    write_shards(tmp_path)
    damage(tmp_path)
    if message is None:  # other shards are there
        assert len(make("webdataset", tmp_path, image_size=8).test.dataset) > 0  # type: ignore[arg-type]
        return
    with pytest.raises(DataError, match=message) as caught:
        make("webdataset", tmp_path, image_size=8)
    assert "\n" not in str(caught.value)


def test_missing_shards_and_classes_that_do_not_fit_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="webdataset needs --data-path"):
        make("webdataset")
    with pytest.raises(DataError, match=r"no folder .*none"):
        make("webdataset", tmp_path / "none")
    with pytest.raises(DataError, match=r"no shard of train in .*DIR/train/\*\.tar"):
        make("webdataset", tmp_path)
    write_shards(tmp_path)
    write_tar(tmp_path / "val" / "0000.tar", [("a.png", PNG), ("a.cls", b"3")])
    with pytest.raises(DataError, match=r"val/0000\.tar, byte \d+ is of class 3, .* 0 to 2"):
        make("webdataset", tmp_path)
    with pytest.raises(DataError, match="--channels 1 is not 3"):
        make("webdataset", tmp_path, channels=1)


def test_a_shard_that_became_shorter_is_a_bad_sample(tmp_path: Path) -> None:
    write_shards(tmp_path)
    data = make("webdataset", tmp_path, image_size=8)
    path = tmp_path / "val" / "0001.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"sample 5 .*the shard is shorter than it was"):
        list(EvalBatches(data, Accelerator(cpu=True)))


def test_saved_splits_may_be_folders_and_columns_have_other_names(tmp_path: Path) -> None:
    import datasets

    write_saved(tmp_path / "one")
    whole = datasets.load_from_disk(str(tmp_path / "one"))
    other = whole.rename_columns({"image": "img", "label": "fine"})
    for split, name in (("train", "train"), ("validation", "val")):
        plain = other[split].cast_column("fine", datasets.Value("int64"))
        plain.rename_column("fine", "labels").save_to_disk(str(tmp_path / "two" / name))
    same = make("huggingface", tmp_path / "two", image_size=8)
    data: Data = make("huggingface", tmp_path / "one", image_size=8)
    assert same.num_classes == data.num_classes == 3
    for one, two in zip(everything(data.test), everything(same.test), strict=True):
        assert torch.equal(one, two)


def test_what_is_wrong_with_a_saved_data_set_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    with pytest.raises(DataError, match="huggingface needs --data-path"):
        make("huggingface")
    with pytest.raises(DataError, match="no folder"):
        make("huggingface", tmp_path / "none")
    with pytest.raises(DataError, match="no split train in"):
        make("huggingface", tmp_path)
    write_saved(tmp_path / "one")
    whole = datasets.load_from_disk(str(tmp_path / "one"))
    for number, (table, message) in enumerate(
        (
            (whole["train"].remove_columns("image"), "one column of images, and there are 0"),
            (
                whole["train"].remove_columns("label"),
                "one column of class labels, .* 0 among",
            ),
            (whole["train"].map(lambda row: {"label": None}), "must be whole numbers from 0"),
            (whole["train"].map(lambda row: {"label": -1}), "must be whole numbers from 0"),
            (
                whole["train"]
                .cast_column("label", datasets.Value("int64"))
                .map(lambda row: {"label": 1 << 40}),
                "must be whole numbers from 0, below 1,048,576",
            ),
        )
    ):
        place = tmp_path / f"bad{number}"
        datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(place))
        with pytest.raises(DataError, match=message):
            make("huggingface", place)
    alone = tmp_path / "alone"
    datasets.DatasetDict({"train": whole["train"]}).save_to_disk(str(alone))
    with pytest.raises(DataError, match=r"no split validation or val or test .* it has train"):
        make("huggingface", alone)
    (alone / "train" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="is not what save_to_disk"):
        make("huggingface", alone)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'st3fx\[datasets\]'"):
        make("huggingface", tmp_path / "one")


def test_a_batch_that_is_larger_than_the_set_is_said(places: dict[str, Path]) -> None:
    for name in NEW:
        with pytest.raises(DataError, match="--batch-size 13 is more than the 12 training samples"):
            make_data(DataSettings(name=name, path=str(places[name]), batch_size=13))
