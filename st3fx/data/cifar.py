"""CIFAR-10 and CIFAR-100: 32×32 colour images (Krizhevsky 2009), read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from st3fx.data.base import Data, DataSettings
from st3fx.data.in_memory import Images, Statistics, make_loaders
from st3fx.errors import DataError, describe

CIFAR10_STATISTICS = Statistics(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Mean and deviation of the 50 000 training images."""

CIFAR100_STATISTICS = Statistics(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
"""Mean and deviation of the 50 000 training images."""

PADDING = 4
"""As in He et al. 2015, section 4.2."""


def cifar10(settings: DataSettings) -> Data:
    """CIFAR-10: 50 000 training and 10 000 test images of ten classes.

    Raises:
        DataError: When the files are not there or are damaged.
    """
    from torchvision.datasets import CIFAR10  # noqa: PLC0415 (seconds; only CIFAR needs it)

    return _make(settings, CIFAR10, CIFAR10_STATISTICS, num_classes=10)


def cifar100(settings: DataSettings) -> Data:
    """CIFAR-100: 50 000 training and 10 000 test images of a hundred classes.

    Raises:
        DataError: When the files are not there or are damaged.
    """
    from torchvision.datasets import CIFAR100  # noqa: PLC0415 (seconds; only CIFAR needs it)

    return _make(settings, CIFAR100, CIFAR100_STATISTICS, num_classes=100)


def _make(settings: DataSettings, reader: Any, statistics: Statistics, *, num_classes: int) -> Data:
    folder = reader.base_folder
    get = f"unpack {reader.url} and give the folder that holds {folder}/ as --data-path"
    if settings.path is None:
        raise DataError(f"{settings.name} needs --data-path: {get}")
    root = Path(settings.path)
    if root.name == folder:
        root = root.parent
    if not (root / folder).is_dir():
        raise DataError(f"no {settings.name} in {settings.path}: it has no {folder}/; {get}")
    train, test = (_read(reader, root, train=train) for train in (True, False))
    return make_loaders(settings, train, test, statistics, padding=PADDING, num_classes=num_classes)


def _read(reader: Any, root: Path, *, train: bool) -> Images:
    # The reader compares checksums before it unpickles anything.
    try:
        content = reader(root, train=train, download=False)
    except Exception as error:
        raise DataError(
            f"{root / reader.base_folder} is incomplete or damaged ({describe(error)}); "
            f"unpack {reader.url} again"
        ) from error
    images = torch.from_numpy(content.data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(content.targets, dtype=torch.int64))
