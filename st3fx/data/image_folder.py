"""A folder of image files in the layout of ImageNet: ``train/CLASS/*``, ``val/CLASS/*``.

Training images are cropped to a random part of random size and flipped at random (Szegedy et al.
2014); test images are resized so that the crop from their middle has 224 / 256 of the shorter side.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from st3fx.data.base import Data, DataSettings, draw, split
from st3fx.data.in_memory import ordered_loader, shuffled_loader
from st3fx.errors import DataError, describe, few

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's training images, per channel."""


def image_folder(settings: DataSettings) -> Data:
    """Loaders over ``train`` and ``val`` (or ``test``) below the path.

    Raises:
        DataError: When a folder, its classes or their images are missing.
    """
    if settings.channels not in (None, 3):
        raise DataError(f"imagefolder reads colour images; --channels {settings.channels} is not 3")
    root = _root(settings)
    size = settings.image_size or 224
    train_folder, test_folder = _part(root, "train"), _part(root, "val", "test")
    plain = _test_transform(size)
    train = _read(train_folder, _train_transform(size) if settings.augment else plain)
    test = _read(test_folder, plain)
    if test.classes != train.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{train_folder} and {test_folder} have different classes: {few(different)} "
            "are in one alone"
        )
    workers: dict[str, Any] = {
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
    }
    return Data(
        train=shuffled_loader(SeededDataset(train, settings.seed), settings, **workers),
        test=ordered_loader(SeededDataset(test, settings.seed), settings, **workers),
        name=settings.name,
        input_shape=(3, size, size),
        num_classes=len(train.classes),
    )


class SeededDataset(Dataset[Any]):
    """Another data set, each of whose samples draws from generators seeded for it alone.

    A number past the set's end is a sample of a later epoch (see ``st3fx.data.base``), so that
    workers that live on from one epoch to the next know which it is.

    Attributes:
        inner: The other data set.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        """Wrap a data set with ``__len__`` and ``__getitem__``."""
        self.inner = dataset
        self._seed = seed

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, number: int) -> Any:
        epoch, index = split([number], len(self))
        with _seeded(int(draw(self._seed, epoch, index, 0)[0])):
            return self.inner[int(index[0])]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU and Python's, and set them back on leaving."""
    # Not torch.manual_seed, which would seed those of all other devices as well.
    state, python_state = torch.get_rng_state(), random.getstate()
    torch.default_generator.manual_seed(seed >> 1)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)


def _root(settings: DataSettings) -> Path:
    if settings.path is None:
        raise DataError(
            "imagefolder needs --data-path, a folder with train/CLASS/* and val/CLASS/*"
        )
    return Path(settings.path)


def _part(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"no folder {' or '.join(names)} in {root}; imagefolder reads {root}/train/CLASS/* and "
        f"{root}/val/CLASS/*"
    )


def _read(folder: Path, transform: Callable[[Any], Any]) -> Any:
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (seconds; only this set needs it)

    try:
        return ImageFolder(str(folder), transform, loader=_decoded)
    except OSError as error:
        raise DataError(
            f"{folder} is not a folder of classes with images in each ({describe(error)})"
        ) from error


def _decoded(path: str) -> Any:
    """An image file in colour.

    Without Pillow's warnings on odd metadata (EXIF): such images are whole. One that is truncated
    raises an error.
    """
    from PIL import Image  # noqa: PLC0415 (only this set needs it)

    with warnings.catch_warnings(), open(path, "rb") as file:  # noqa: PTH123 (a text)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        return Image.open(file).convert("RGB")


def _train_transform(size: int) -> Callable[[Any], Any]:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    crop = (transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip())
    return _then_normalise(*crop)


def _test_transform(size: int) -> Callable[[Any], Any]:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    return _then_normalise(transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size))


def _then_normalise(*steps: Any) -> Callable[[Any], Any]:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    normalise = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))
    composed: Callable[[Any], Any] = transforms.Compose([*steps, *normalise])
    return composed
