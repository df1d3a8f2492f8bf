"""Shards in the layout of WebDataset: tar files with an image and its class for each sample.

Members that share a path up to the first dot of their name are one sample: ``0007.jpg`` and
``0007.cls``, a text with the number of the class. The shards of training images are
``train/*.tar``, or ``*train*.tar`` in the folder itself; those of test images have ``val`` or
``test`` there.

The heads of all members are read once, when training starts: so samples have an index, as those of
a folder of files have, and any of them is one read at a known place. Shuffling is over all samples,
an epoch has each of them once whatever the number of processes, and a run goes on in the middle of
one bit for bit; none of that is so where shards are streamed.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from st3fx.data.base import Data, DataSettings
from st3fx.data.images import Transform, decoded, image_loaders, transforms_of
from st3fx.errors import DataError, describe
from st3fx.files.reading import DamageError, check_regular

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif"))
CLASS = "cls"

CLASSES = 1 << 20
"""That a label may be of: a model gets an output for each."""

_LAYOUT = "webdataset reads DIR/train/*.tar and DIR/val/*.tar, or DIR/*train*.tar and DIR/*val*.tar"


def shards(settings: DataSettings) -> Data:
    """Loaders over the shards below the path.

    Raises:
        DataError: When shards are missing or damaged, or a sample lacks its image or class.
    """
    augmented, plain = transforms_of(settings)
    if settings.path is None:
        raise DataError(f"webdataset needs --data-path: {_LAYOUT}")
    root = Path(settings.path)
    train = ShardedImages(_shards(root, "train"), augmented)
    test = ShardedImages(_shards(root, "val", "test"), plain)
    classes = int(train.labels.max()) + 1
    if int(test.labels.max()) >= classes:
        place = int(test.labels.argmax())
        raise DataError(
            f"{test.where(place)} is of class {test.labels[place]}, and the training images have "
            f"classes 0 to {classes - 1}"
        )
    return image_loaders(settings, train, test, classes)


def _shards(root: Path, *names: str) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"no folder {root}: {_LAYOUT}")
    for name in names:
        found = sorted((root / name).glob("*.tar")) or sorted(root.glob(f"*{name}*.tar"))
        if found:
            return found
    raise DataError(f"no shard of {' or '.join(names)} in {root}: {_LAYOUT}")


@dataclass
class _Heads:
    """Of the images of several shards, a number for each.

    Attributes:
        shards: In which it is.
        begins: Its first byte there.
        sizes: Its bytes.
        labels: Its class.
    """

    shards: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


class ShardedImages(Dataset[Any]):
    """The samples of several shards, in their order.

    Attributes:
        labels: Class of each sample.
    """

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        """Read the heads of all members.

        Raises:
            DataError: When a shard cannot be read, or a sample is not whole.
        """
        self._paths, self._transform = [str(path) for path in paths], transform
        heads = _Heads()
        for number, path in enumerate(paths):
            _read_heads(path, number, heads)
        # As arrays: a million samples are some tens of MB, which processes that load data share.
        self._shards = np.array(heads.shards, np.int32)
        self._begins = np.array(heads.begins, np.int64)
        self._sizes = np.array(heads.sizes, np.int64)
        self.labels: NDArray[np.int64] = np.array(heads.labels, np.int64)
        if not len(self.labels):
            raise DataError(f"{paths[0]} and the other {len(paths) - 1} shards hold no sample")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, transformed, and its class.

        Raises:
            OSError: When it cannot be read or decoded.
        """
        # Opened for each: nothing is shared between processes, and no handle is kept.
        with open(self._paths[self._shards[index]], "rb", buffering=0) as file:  # noqa: PTH123
            file.seek(self._begins[index])
            content = file.read(int(self._sizes[index]))
        if len(content) < self._sizes[index]:
            raise OSError(f"the shard is shorter than it was: {len(content)} bytes of an image")
        return self._transform(decoded(io.BytesIO(content))), int(self.labels[index])

    def where(self, index: int) -> str:
        """``DIR/train-0003.tar, byte 51712``: where a sample lies, for messages."""
        return f"{self._paths[self._shards[index]]}, byte {self._begins[index]}"


def _read_heads(path: Path, number: int, heads: _Heads) -> None:
    """Take in the samples of a shard.

    Raises:
        DataError: When it is damaged, or a sample is not whole.
    """
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        check_regular(path)  # to open a pipe would wait for ever
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.issparse():  # its bytes are not where its head says
                    raise tarfile.ReadError(f"{member.name[:80]!r} has holes")
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                if key:
                    place = (member.offset_data, member.size)
                    parts.setdefault(f"{folder}/{key}", {})[kind.lower()] = place
            _check_end(tar, file)
            for key, found in parts.items():
                images = [found[kind] for kind in found if kind in IMAGES]
                if CLASS not in found or len(images) != 1:
                    what = "no class (.cls)" if CLASS not in found else f"{len(images)} images"
                    raise DataError(f"{path}: the sample {key.lstrip('/')[:80]!r} has {what}")
                begin, size = found[CLASS]
                file.seek(begin)
                heads.labels.append(_label(file.read(min(size, 32)), path, key))
                heads.shards.append(number)
                heads.begins.append(images[0][0])
                heads.sizes.append(images[0][1])
    except (tarfile.TarError, OSError, EOFError, DamageError) as error:
        raise DataError(f"{path} is not a shard, or is damaged ({describe(error)})") from error


def _check_end(tar: tarfile.TarFile, file: Any) -> None:
    """Fail where a member's head is damaged: ``tarfile`` takes it for the end of the archive."""
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if tar.offset > size or block.strip(b"\0"):
        raise tarfile.ReadError(f"no head of a member at byte {tar.offset}")


def _label(text: bytes, path: Path, key: str) -> int:
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < CLASSES:
        raise DataError(
            f"{path}: the class of {key.lstrip('/')[:80]!r} is {text[:20]!r}, not a number from 0"
        )
    return label
