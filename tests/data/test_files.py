from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from st3fx.data.fashion_mnist import read_idx
from st3fx.errors import DataError
from tests.data_helpers import everything, make


def idx(values: np.ndarray[Any, Any]) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_fashion(folder: Path, *, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        for kind, values in (
            ("images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28))),
            ("labels-idx1-ubyte", np.arange(count) % 10),
        ):
            content = idx(values)
            if zipped:
                (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{part}-{kind}").write_bytes(content)


def test_idx(tmp_path: Path) -> None:
    values = np.arange(24).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(values))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("a", "a.gz"):
        assert read_idx(tmp_path / name).dtype == torch.uint8
        assert read_idx(tmp_path / name).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", "a is not an idx file of bytes; get the file again"),
        ("a", idx(np.zeros(3))[:5], "is not an idx file"),
        ("a", b"\0\0\x0d\x01\0\0\0\0", "is not an idx file of bytes"),
        ("a", idx(np.zeros((2, 3)))[:-1], "a has 17 bytes where its header promises 18; get"),
        ("a", idx(np.zeros((2, 3))) + b"\0", "a has 19 bytes where its header promises 18; get"),
        ("a.gz", b"<html>", "cannot read .*a.gz: Not a gzipped file"),
        ("a.gz", gzip.compress(bytes(99), mtime=0)[:-9], "cannot read .*a.gz: Compressed file"),
        ("b", None, "cannot read .*b: .*No such file"),
    ],
)
def test_idx_errors(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / name)


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_is_found(tmp_path: Path, below: str, *, zipped: bool) -> None:
    write_fashion(tmp_path / below, zipped=zipped)
    data = make("fashion-mnist", tmp_path)
    assert (data.input_shape, data.num_classes, len(data.train)) == ((1, 28, 28), 10, 5)
    assert everything(data.test)[1].tolist() == list(range(10))


def test_fashion_mnist_is_looked_for_in_debians_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st3fx.data.fashion_mnist.DEBIAN", tmp_path)
    message = (
        rf"^no Fashion-MNIST: train-images-idx3-ubyte\[.gz\] is not in {tmp_path}, nor in raw/ or "
        "FashionMNIST/raw/ below; apt install dataset-fashion-mnist, or give .* --data-path$"
    )
    with pytest.raises(DataError, match=message):
        make("fashion-mnist")
    write_fashion(tmp_path)
    assert len(everything(make("fashion-mnist").test)[0]) == 10


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("train-labels-idx1-ubyte", np.full(20, 10), "has a label 10; Fashion-MNIST has 0 to 9"),
        ("train-labels-idx1-ubyte", np.zeros(19), r"shape \(20, 28, 28\) and its labels \(19,\)"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 28, 27)), r"has shape \(10, 28, 27\)"),
    ],
)
def test_another_set_in_the_place_of_fashion_mnist(
    tmp_path: Path, file: str, values: np.ndarray[Any, Any], message: str
) -> None:
    write_fashion(tmp_path)
    (tmp_path / file).write_bytes(idx(values))
    with pytest.raises(DataError, match=message):
        make("fashion-mnist", tmp_path)


def write_cifar(folder: Path, files: dict[str, int], key: str, meta: str) -> None:
    """In the format of the published archives: pickled rows of red, green and blue planes."""
    folder.mkdir()
    for name, first in files.items():
        pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)
        pixels[:, 0] = 255  # red
        pixels[:, 2, 0, 1] = first
        rows = {"data": pixels.reshape(4, -1), key: [first + i for i in range(4)]}
        (folder / name).write_bytes(pickle.dumps(rows))
    names = "label_names" if key == "labels" else "fine_label_names"
    (folder / meta).write_bytes(pickle.dumps({names: ["a"]}))


@pytest.fixture
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    def exists(path: str, md5: str | None = None) -> bool:
        del md5
        return Path(path).exists()

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", exists)


@pytest.mark.usefixtures("_no_checksums")
def test_cifar10(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    files = {f"data_batch_{i}": i for i in range(1, 6)}
    write_cifar(folder, {**files, "test_batch": 6}, "labels", "batches.meta")
    data = make("cifar10", tmp_path)
    assert (data.input_shape, data.num_classes, len(data.train)) == ((3, 32, 32), 10, 5)
    images, labels = everything(data.test)
    assert labels.tolist() == [6, 7, 8, 9]
    pixel = torch.tensor([1.0, 0.0, 6 / 255])
    expected = (pixel - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor(
        [0.2470, 0.2435, 0.2616]
    )
    torch.testing.assert_close(images[0, :, 0, 1], expected, rtol=0, atol=1e-5)
    # The folder of the archive itself is as good.
    assert torch.equal(everything(make("cifar10", folder).test)[0], images)
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"batches-py is incomplete or damaged .*; unpack http"):
        make("cifar10", tmp_path)


@pytest.mark.usefixtures("_no_checksums")
def test_cifar100(tmp_path: Path) -> None:
    files = {"train": 0, "test": 90}
    write_cifar(tmp_path / "cifar-100-python", files, "fine_labels", "meta")
    data = make("cifar100", tmp_path, channels=3)
    assert data.num_classes == 100
    assert everything(data.test)[1].tolist() == [90, 91, 92, 93]


def test_cifar_checks_its_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^cifar10 needs --data-path: unpack https?://.*gz and"):
        make("cifar10")
    with pytest.raises(DataError, match=rf"^no cifar100 in {tmp_path}: it has no cifar-100-py"):
        make("cifar100", tmp_path)
    write_cifar(tmp_path / "cifar-100-python", {"train": 0, "test": 90}, "fine_labels", "meta")
    with pytest.raises(DataError, match="incomplete or damaged"):
        make("cifar100", tmp_path)
