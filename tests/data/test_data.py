from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.nn import functional as F

from st3fx.data import DATASETS, Data, DataSettings, make_data
from st3fx.data.base import EpochSampler, below, draw, mix
from st3fx.data.fashion_mnist import MINI, PADDING, STATISTICS, read_idx
from st3fx.data.in_memory import Images, Statistics, TensorImages
from st3fx.errors import DataError

SHA256 = {
    "t10k-images-idx3-ubyte.gz": "1d883f3966f98d7fc5011e0ff22f6e190d3b994ad0583bfd53c4b120eb39f754",
    "t10k-labels-idx1-ubyte.gz": "4f81dd80fbbee90c38545ee999e120b1c191bf127f0aa516f21ef7e023d316a9",
    "train-images-idx3-ubyte.gz": (
        "3e0dde4ce779de64e88a8377d8b86874cf1d5ff178cd271acdd5a65303d5f92a"
    ),
    "train-labels-idx1-ubyte.gz": (
        "02870ffe5057f94696feb79d1f7c04012b347609c51d2ac2aaedcbd3f1e1fcdc"
    ),
}
"""Of what ``benchmarks/make_fashion_mnist_mini.py`` made from the published files."""

Pass = list[tuple[Tensor, Tensor]]


def mini(**settings: Any) -> Data:
    return make_data(DataSettings(**settings))


def read(data: Data, epoch: int) -> Pass:
    data.set_epoch(epoch)
    return list(data.train)


def same(a: Pass, b: Pass) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_shipped_files() -> None:
    files = {path.name: path for path in MINI.iterdir()}
    assert set(files) == {*SHA256, "LICENSE", "README.md"}
    for name, digest in SHA256.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in files.values()) < 2_200_000
    assert "2017 Zalando SE" in files["LICENSE"].read_text(encoding="utf-8")


@pytest.mark.parametrize(("part", "count"), [("train", 400), ("t10k", 100)])
def test_mini_is_balanced(part: str, count: int) -> None:
    labels = read_idx(MINI / f"{part}-labels-idx1-ubyte.gz")
    assert labels.bincount().tolist() == [count] * 10
    images = read_idx(MINI / f"{part}-images-idx3-ubyte.gz")
    assert images.shape == (10 * count, 28, 28)
    assert len({image.tobytes() for image in images.numpy()}) == len(images)
    values = images.float() / 255
    assert values.mean().item() == pytest.approx(STATISTICS.mean[0], abs=5e-3)
    assert values.std().item() == pytest.approx(STATISTICS.std[0], abs=5e-3)


def test_loaders_of_the_mini_set() -> None:
    data = mini(batch_size=96)
    assert (data.input_shape, data.num_classes) == ((1, 28, 28), 10)
    assert (len(data.train), len(data.test)) == (4000 // 96, -(-1000 // 192))
    x, y = next(iter(data.train))
    assert (x.shape, x.dtype, y.shape, y.dtype) == (
        (96, 1, 28, 28),
        torch.float32,
        (96,),
        torch.int64,
    )
    assert mini(eval_batch_size=50).test.batch_size == 50


def test_test_images_are_normalised_and_in_their_order() -> None:
    images, labels = (torch.cat(parts) for parts in zip(*mini().test, strict=True))
    raw = read_idx(MINI / "t10k-images-idx3-ubyte.gz").float()[:, None] / 255
    expected = (raw - STATISTICS.mean[0]) / STATISTICS.std[0]
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    assert torch.equal(labels, read_idx(MINI / "t10k-labels-idx1-ubyte.gz").long())


def test_splitmix64() -> None:
    # The first outputs for the seed 0, from the authors' program.
    state = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_draws_depend_on_each_argument() -> None:
    epochs, indices = np.meshgrid(np.arange(20), np.arange(500))
    draws = {
        (seed, stream): draw(seed, epochs.ravel(), indices.ravel(), stream)
        for seed in (0, 1, -1)
        for stream in (0, 1)
    }
    assert len(set(np.concatenate(list(draws.values())).tolist())) == 60_000
    for words in draws.values():
        counts = np.bincount(below(words, 5), minlength=5)
        assert counts.min() > 1850  # 2000 expected, standard deviation 40
    first, second = (below(draws[0, stream], 5) for stream in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(1000, seed)
        sampler.epoch = epoch
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert sorted(order(0, 3)) == list(range(3000, 4000))
    indices = {tuple(i % 1000 for i in order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(indices) == 4


def test_a_pass_that_has_begun_keeps_its_epoch() -> None:
    data = mini(batch_size=1000)
    expected = read(data, 0)
    data.set_epoch(0)
    running = iter(data.train)
    got = [next(running)]
    data.set_epoch(1)
    got += running
    assert same(got, expected)


def test_epochs_repeat_and_differ_and_leave_generators_alone() -> None:
    data = mini(batch_size=500)
    before, python_before = torch.get_rng_state(), random.getstate()
    second, first = read(data, 1), read(data, 0)
    assert same(second, read(mini(batch_size=500), 1))
    assert not same(first, second)
    assert not same(first, read(mini(batch_size=500, seed=1), 0))
    list(data.test)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_augmentation_depends_on_the_seed() -> None:
    a, b, again = (mini(seed=seed).train.dataset[5][0] for seed in (0, 1, 0))
    assert not torch.equal(a, b)
    assert torch.equal(a, again)


@pytest.mark.parametrize("settings", [{}, {"channels": 3, "image_size": 40}, {"image_size": 17}])
def test_a_sample_is_the_same_in_any_batch(settings: dict[str, int]) -> None:
    dataset: Any = mini(**settings).train.dataset
    numbers = [5, 4003, 12_777, 3999, 4003, 8005]
    images, labels = dataset.__getitems__(numbers)
    for number, image, label in zip(numbers, images, labels, strict=True):
        alone, its_label = dataset[number]
        assert torch.equal(alone, image)
        assert label == its_label
    backwards, _ = dataset.__getitems__(numbers[::-1])
    assert torch.equal(backwards.flip(0), images)
    # Index 5 in epochs 0 and 2: the same article, but cropped or flipped in another way.
    assert labels[0] == labels[5]
    assert not torch.equal(images[0], images[5])


def test_augmentation_crops_and_flips() -> None:
    raw = torch.randint(0, 256, (4, 2, 6, 6), dtype=torch.uint8)
    content = Images(raw, torch.arange(4))
    unit = Statistics(mean=(0.0, 0.0), std=(1.0, 1.0))
    dataset = TensorImages(content, unit, padding=1, flip=True)
    padded = F.pad(raw, (1, 1, 1, 1))
    choices = {}
    for dy in range(3):
        for dx in range(3):
            crop = padded[:, :, dy : dy + 6, dx : dx + 6]
            for flip, version in ((0, crop), (1, crop.flip(-1))):
                for index in range(4):
                    choices[index, version[index].numpy().tobytes()] = (dy, dx, flip)
    images, labels = dataset.__getitems__(range(3600))
    bytes_ = (255 * images).round().to(torch.uint8).numpy()
    found = Counter(
        choices[int(label), image.tobytes()] for label, image in zip(labels, bytes_, strict=True)
    )
    assert len(found) == 18
    assert min(found.values()) > 140  # 200 expected, standard deviation 14
    assert torch.equal(labels, torch.arange(3600) % 4)


def test_augmentation_off() -> None:
    data: Any = mini(augment=False)
    (first, second), labels = (part.split(1) for part in data.train.dataset.__getitems__([7, 4007]))
    assert torch.equal(first, second)
    assert labels[0] == labels[1]
    raw = read_idx(MINI / "train-images-idx3-ubyte.gz")[7].float() / 255
    expected = (raw - STATISTICS.mean[0]) / STATISTICS.std[0]
    torch.testing.assert_close(first[0, 0], expected, rtol=0, atol=1e-5)
    assert PADDING > 0


def test_shards_are_parts_of_the_whole_and_resume_in_the_middle() -> None:
    whole = read(mini(batch_size=300), 2)
    for rank in range(2):
        data = mini(batch_size=300)
        loader = prepare_data_loader(
            data.train, num_processes=2, process_index=rank, use_seedable_sampler=True, data_seed=9
        )
        data.set_epoch(2)
        shard = list(loader)
        assert same(shard, whole[rank : len(whole) - len(whole) % 2 : 2])
        # As a new process that goes on in the middle of an epoch.
        data = mini(batch_size=300)
        loader = prepare_data_loader(
            data.train, num_processes=2, process_index=rank, use_seedable_sampler=True, data_seed=9
        )
        data.set_epoch(2)
        assert same(list(skip_first_batches(loader, 4)), shard[4:])
        data.set_epoch(3)
        assert not same(list(loader), shard)


def test_all_test_samples_are_sharded() -> None:
    shards = [
        list(prepare_data_loader(mini().test, num_processes=2, process_index=rank))
        for rank in range(2)
    ]
    seen = torch.cat([y for pair in zip(*shards, strict=True) for _, y in pair])
    assert torch.equal(seen[:1000], torch.cat([y for _, y in mini().test]))


def test_channels_and_size() -> None:
    grey, colour = mini(), mini(channels=3, image_size=28)
    assert colour.input_shape == (3, 28, 28)
    a, b = next(iter(grey.test))[0], next(iter(colour.test))[0]
    assert torch.equal(b, a.expand(-1, 3, -1, -1))
    large = mini(image_size=32)
    assert large.input_shape == (1, 32, 32)
    x = next(iter(large.train))[0]
    assert x.shape == (128, 1, 32, 32)
    assert abs(x.mean() - next(iter(grey.train))[0].mean()) < 0.02


def test_example_changes_nothing() -> None:
    data = mini(batch_size=1000)
    expected = read(mini(batch_size=1000), 0)
    running = iter(data.train)
    got = [next(running)]
    before = torch.get_rng_state()
    example = data.example()
    assert example.shape == (2, 1, 28, 28)
    assert data.example(5).shape == (5, 1, 28, 28)
    assert torch.equal(example, mini().example())
    assert torch.equal(torch.get_rng_state(), before)
    assert same([*got, *running], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"eval_batch_size": -1}, "eval_batch_size is -1; it must be 1 or more"),
        ({"image_size": 0}, "image_size is 0; it must be 1 or more"),
        ({"workers": -1}, "workers is -1; it must be 0 or more"),
        ({"channels": 2}, "has images of 1 channels, and --channels is 2; it may be 1 or 3"),
        ({"batch_size": 4001}, "--batch-size 4001 is more than the 4000 training samples of fash"),
        ({"path": "data"}, "fashion-mnist-mini comes with st3fx and takes no --data-path"),
        ({"name": "fashion-mnst"}, "no data set 'fashion-mnst'; did you mean fashion-mnist"),
        ({"name": "imagenet"}, "no data set 'imagenet'.*loaders.py:make_loaders"),
        ({"name": "mnist1d"}, "no data set 'mnist1d'"),
        ({"name": "torchvision:resnet18"}, "no data set 'torchvision:resnet18';"),
    ],
)
def test_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        mini(**settings)
    assert "\n" not in str(caught.value)


def test_the_table_has_what_the_settings_name() -> None:
    assert list(DATASETS) == [
        "fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "imagefolder",
        "webdataset", "huggingface",
    ]  # fmt: skip
    assert DataSettings().name in DATASETS
