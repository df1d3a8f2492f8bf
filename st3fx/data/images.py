"""Labelled image files, wherever they lie: decoding, cropping, and loaders over them.

Training images are cropped to a random part of random size and flipped at random (Szegedy et al.
2014); test images are resized so that the crop from their middle has 224 / 256 of the shorter side.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch
from torch.utils.data import Dataset

from st3fx.data.base import Data, DataSettings, draw, split
from st3fx.data.in_memory import ordered_loader, shuffled_loader
from st3fx.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's training images, per channel."""

Transform = Callable[[Any], Any]


def transforms_of(settings: DataSettings) -> tuple[Transform, Transform]:
    """What is done to training and to test images.

    Raises:
        DataError: When other than colour images are asked for.
    """
    if settings.channels not in (None, 3):
        raise DataError(
            f"{settings.name} reads colour images; --channels {settings.channels} is not 3"
        )
    size = settings.image_size or 224
    plain = _test_transform(size)
    return _train_transform(size) if settings.augment else plain, plain


def image_loaders(settings: DataSettings, train: Any, test: Any, num_classes: int) -> Data:
    """Loaders over two sets of images that have an index, decoded and cropped.

    Raises:
        DataError: When not one batch of training images is full.
    """
    size = settings.image_size or 224
    workers: dict[str, Any] = {
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
    }
    return Data(
        train=shuffled_loader(SeededDataset(train, settings.seed), settings, **workers),
        test=ordered_loader(SeededDataset(test, settings.seed), settings, **workers),
        name=settings.name,
        input_shape=(3, size, size),
        num_classes=num_classes,
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


def decoded(file: BinaryIO) -> Any:
    """An image in colour.

    Without Pillow's warnings on odd metadata (EXIF): such images are whole. One that is truncated
    raises an error.
    """
    from PIL import Image  # noqa: PLC0415 (only sets of image files need it)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        return Image.open(file).convert("RGB")


def _train_transform(size: int) -> Transform:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    crop = (transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip())
    return _then_normalise(*crop)


def _test_transform(size: int) -> Transform:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    return _then_normalise(transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size))


def _then_normalise(*steps: Any) -> Transform:
    from torchvision import transforms  # noqa: PLC0415 (seconds; only this set needs it)

    normalise = (transforms.ToTensor(), transforms.Normalize(MEAN, STD))
    composed: Transform = transforms.Compose([*steps, *normalise])
    return composed
