"""A folder of image files in the layout of ImageNet: ``train/CLASS/*``, ``val/CLASS/*``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from st3fx.data.base import Data, DataSettings
from st3fx.data.images import Transform, decoded, image_loaders, transforms_of
from st3fx.errors import DataError, describe, few
from st3fx.files.reading import check_regular


def image_folder(settings: DataSettings) -> Data:
    """Loaders over ``train`` and ``val`` (or ``test``) below the path.

    Raises:
        DataError: When a folder, its classes or their images are missing.
    """
    augmented, plain = transforms_of(settings)
    root = _root(settings)
    train_folder, test_folder = _part(root, "train"), _part(root, "val", "test")
    train = _read(train_folder, augmented)
    test = _read(test_folder, plain)
    if test.classes != train.classes:
        different = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{train_folder} and {test_folder} have different classes: {few(different)} "
            "are in one alone"
        )
    return image_loaders(settings, train, test, len(train.classes))


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


def _read(folder: Path, transform: Transform) -> Any:
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 (seconds; only this set needs it)

    try:
        return ImageFolder(str(folder), transform, loader=_opened)
    except OSError as error:
        raise DataError(
            f"{folder} is not a folder of classes with images in each ({describe(error)})"
        ) from error


def _opened(path: str) -> Any:
    check_regular(path)  # to open a pipe would wait for ever
    with open(path, "rb") as file:  # noqa: PTH123 (a text)
        return decoded(file)
