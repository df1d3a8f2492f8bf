"""Makes ``st3fx/data/fashion_mnist_mini`` from the full Fashion-MNIST.

python -m benchmarks.make_fashion_mnist_mini FOLDER

FOLDER holds the four files of Fashion-MNIST. The first 400 training and the first 100 test images
of each class are taken, in their order.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from st3fx.data.fashion_mnist import MINI, read_idx

PER_CLASS = {"train": 400, "t10k": 100}
"""File prefix -> images taken of each of the ten classes."""


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Indices of the first ``count`` samples of each class, ascending."""
    picked = [torch.nonzero(labels == label)[:count, 0] for label in labels.unique()]
    return torch.cat(picked).sort().values


def write_idx(path: Path, values: Tensor) -> None:
    """Write a uint8 tensor as a compressed idx file, the same bytes each time."""
    header = bytes([0, 0, 8, values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes(), 9, mtime=0))


def main(folder: Path) -> None:
    """Write the four files."""
    for part, count in PER_CLASS.items():
        names = [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"]
        images, labels = (read_idx(folder / name) for name in names)
        index = first_of_each(labels, count)
        for name, values in zip(names, (images[index], labels[index]), strict=True):
            write_idx(MINI / name, values.contiguous())
            print(f"{MINI / name}: {tuple(values.shape)}, {(MINI / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
