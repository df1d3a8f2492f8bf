from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from st3fx.data import DataSettings, make_data
from st3fx.errors import DataError
from st3fx.training.batches import EvalBatches
from tests.data_helpers import everything, make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight training and four test pictures of noise, in two classes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_a_pipe_among_the_images_does_not_hang(pictures: Path) -> None:
    os.mkfifo(pictures / "val" / "cat" / "pipe.png")
    data = make("imagefolder", pictures, image_size=14)
    says = r"sample 2 \(.*pipe\.png\): DamageError: is a pipe, not a file"
    with pytest.raises(DataError, match=says):
        list(EvalBatches(data, Accelerator(cpu=True)))


def test_image_folder(pictures: Path) -> None:
    data = make("imagefolder", pictures, image_size=14)
    assert (data.input_shape, data.num_classes) == ((3, 14, 14), 2)
    assert data.example(3).shape == (3, 3, 14, 14)
    images, labels = everything(data.test)
    assert labels.tolist() == [0, 0, 1, 1]
    # By hand: the shorter side to 16 pixels, then 14×14 from the middle.
    picture = Image.open(pictures / "val" / "cat" / "0.png").resize((21, 16), Image.BILINEAR)  # type: ignore[attr-defined]
    crop = torch.from_numpy(np.array(picture)[1:15, 4:18]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (crop - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-5)
    assert make("imagefolder", pictures).input_shape == (3, 224, 224)


def test_image_folder_repeats_itself_with_and_without_workers(pictures: Path) -> None:
    before, python_before = torch.get_rng_state(), random.getstate()
    here = make("imagefolder", pictures, image_size=8)
    there = make("imagefolder", pictures, image_size=8, workers=1)
    assert there.train.persistent_workers
    passes = []
    for epoch in (0, 1, 0):
        here.set_epoch(epoch)
        there.set_epoch(epoch)
        images, labels = everything(here.train)
        # The same worker goes on from epoch to epoch, and knows which it is.
        theirs, their_labels = everything(there.train)
        assert torch.equal(images, theirs)
        assert torch.equal(labels, their_labels)
        passes.append(images)
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_image_folder_crops_each_sample_in_its_own_way(pictures: Path) -> None:
    white = Image.new("RGB", (30, 40), "white")
    white.paste("black", (0, 0, 15, 20))
    for i in range(4):
        white.save(pictures / "train" / "cat" / f"{i}.png")
    dataset = make("imagefolder", pictures, image_size=8).train.dataset
    crops = [dataset[number][0] for number in (0, 1, 2, 8, 9)]
    assert len({crop.numpy().tobytes() for crop in crops}) == 5
    still = make("imagefolder", pictures, image_size=8, augment=False).train.dataset
    crops = [still[number][0] for number in (0, 1, 2, 8, 9)]
    assert len({crop.numpy().tobytes() for crop in crops}) == 1


def _remove_classes(root: Path) -> None:
    (root / "train").rename(root / "old")
    (root / "train").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val").rename(root / "test"), None),
        (lambda root: (root / "val").rename(root / "eval"), "no folder val or test in .*; image"),
        (lambda root: (root / "train").rename(root / "t"), "no folder train in .*; imagefolder r"),
        (_remove_classes, r"train is not a folder of classes .*find any class folder"),
        (
            lambda root: [file.unlink() for file in (root / "val" / "cat").iterdir()],
            r"val is not a folder of classes .*no valid file for the classes cat",
        ),
        (
            lambda root: (root / "val" / "cat").rename(root / "val" / "cow"),
            r"train and .*val have different classes: cat, cow are in one alone",
        ),
    ],
)
def test_image_folder_layout(
    pictures: Path, change: Callable[[Path], object], message: str | None
) -> None:
    change(pictures)
    if message is None:
        assert len(everything(make("imagefolder", pictures, image_size=8).test)[0]) == 4
        return
    with pytest.raises(DataError, match=message) as caught:
        make("imagefolder", pictures)
    assert "\n" not in str(caught.value)


def test_image_folder_settings(pictures: Path) -> None:
    with pytest.raises(DataError, match="imagefolder needs --data-path, a folder with train/CLASS"):
        make("imagefolder")
    with pytest.raises(DataError, match="reads colour images; --channels 1 is not 3"):
        make("imagefolder", pictures, channels=1)
    with pytest.raises(DataError, match="--batch-size 9 is more than the 8 training samples"):
        make_data(DataSettings(name="imagefolder", path=str(pictures), batch_size=9))
