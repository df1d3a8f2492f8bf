"""Fashion-MNIST: 28×28 grey images of ten kinds of clothing (Xiao, Rasul, Vollgraf 2017).

``fashion-mnist-mini`` is a subset that comes with st3fx; see ``fashion_mnist_mini/README.md``.

Reads the idx format of MNIST and its successors, compressed with gzip or not.

Two zero bytes, a byte for the type (8 is uint8), a byte for the number of dimensions, each size as
four bytes with the highest first, then the values, the last index running fastest. Source: the page
of the MNIST database by LeCun, Cortes and Burges.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from st3fx.data.base import Data, DataSettings
from st3fx.data.in_memory import Images, Statistics, make_loaders
from st3fx.errors import DataError


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor that a file holds.

    Args:
        path: Decompressed if it ends in ``.gz``.

    Raises:
        DataError: When the file cannot be read or is no idx file of bytes.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get the file again") from error
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or not dimensions or len(content) < start:
        raise DataError(f"{path} is not an idx file of bytes; get the file again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content):,} bytes where its header promises {expected:,}; "
            "get the file again"
        )
    # Copied, as torch warns of memory that it must not write to.
    values = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
    return torch.from_numpy(values)


DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and Ubuntu puts the files."""

MINI = Path(__file__).parent / "fashion_mnist_mini"

STATISTICS = Statistics(mean=(0.2860,), std=(0.3530,))
"""Mean and deviation of the 60 000 training images."""

PADDING = 2
"""Half of CIFAR's: the articles fill their frames from border to border."""

_CLASSES = 10


def fashion_mnist(settings: DataSettings) -> Data:
    """The full set: 60 000 training and 10 000 test images.

    Raises:
        DataError: When the files are not there or are damaged.
    """
    return _make(settings, Path(settings.path) if settings.path else DEBIAN)


def fashion_mnist_mini(settings: DataSettings) -> Data:
    """The subset that comes with st3fx: 4 000 training and 1 000 test images.

    Raises:
        DataError: When a path is given, or the installation is damaged.
    """
    if settings.path is not None:
        raise DataError(
            f"fashion-mnist-mini comes with st3fx and takes no --data-path ({settings.path}); "
            "leave it out, or give --data fashion-mnist"
        )
    return _make(settings, MINI)


def _make(settings: DataSettings, folder: Path) -> Data:
    train, test = (_read(folder, part) for part in ("train", "t10k"))
    return make_loaders(settings, train, test, STATISTICS, padding=PADDING, num_classes=_CLASSES)


def _read(folder: Path, part: str) -> Images:
    files = [_find(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    images, labels = (read_idx(file) for file in files)
    if images.dim() != 3 or images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{files[0]} has shape {tuple(images.shape)} and its labels {tuple(labels.shape)}; "
            "Fashion-MNIST has n×28×28 and n"
        )
    if len(labels) and int(labels.max()) >= _CLASSES:
        raise DataError(f"{files[1]} has a label {int(labels.max())}; Fashion-MNIST has 0 to 9")
    return Images(images[:, None], labels.to(torch.int64))


def _find(folder: Path, name: str) -> Path:
    """The file called ``name``, with ``.gz`` or without, where it usually lies below ``folder``."""
    places = (folder, folder / "raw", folder / "FashionMNIST" / "raw")
    for place in places:
        for file in (place / name, place / f"{name}.gz"):
            if file.is_file():
                return file
    raise DataError(
        f"no Fashion-MNIST: {name}[.gz] is not in {folder}, nor in raw/ or FashionMNIST/raw/ "
        "below; apt install dataset-fashion-mnist, or give its folder as --data-path"
    )
