"""Data sets of images that the library ``datasets`` has saved: ``save_to_disk``.

A ``DatasetDict`` with a split ``train`` and one of ``validation``, ``val`` or ``test``; or a folder
of that name for each. The one column of images is decoded here; the label is the one column of
class labels, or of whole numbers called ``label``. Tables stay on the disk, mapped into memory.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from st3fx.data.base import Data, DataSettings
from st3fx.data.images import Transform, decoded, image_loaders, transforms_of
from st3fx.data.shards import CLASSES
from st3fx.errors import DataError, describe
from st3fx.files.reading import check_regular

_TEST = ("validation", "val", "test")


def hugging_face(settings: DataSettings) -> Data:
    """Loaders over what is saved below the path.

    Raises:
        DataError: When the library, a split or a column is missing, or a file is damaged.
    """
    augmented, plain = transforms_of(settings)
    if settings.path is None:
        raise DataError("huggingface needs --data-path, what save_to_disk of datasets has written")
    root = Path(settings.path)
    train = SavedImages(_split(root, "train"), augmented, f"{root}, train")
    test = SavedImages(_split(root, *_TEST), plain, f"{root}, test")
    if test.num_classes > train.num_classes:
        raise DataError(
            f"{root}: test images have {test.num_classes} classes, training images "
            f"{train.num_classes}"
        )
    return image_loaders(settings, train, test, train.num_classes)


def _split(root: Path, *names: str) -> Any:
    """The first of these splits that is there."""
    library = _library()
    if not root.is_dir():
        raise DataError(f"no folder {root}: save_to_disk of datasets writes one")
    try:
        whole = None
        if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
            whole = library.load_from_disk(str(root))
        for name in names:
            if isinstance(whole, library.DatasetDict) and name in whole:
                return whole[name]
            if whole is None and (root / name).is_dir():
                return library.load_from_disk(str(root / name))
    except Exception as error:  # of Arrow's and its own many types
        raise DataError(
            f"{root} is not what save_to_disk of datasets writes, or is damaged ({describe(error)})"
        ) from error
    there = f"; it has {', '.join(whole)}" if isinstance(whole, library.DatasetDict) else ""
    raise DataError(f"no split {' or '.join(names)} in {root}{there}")


def _library() -> Any:
    try:
        import datasets  # noqa: PLC0415 (seconds, and an extra)
    except ImportError as error:
        raise DataError(
            "huggingface needs the library datasets: pip install 'st3fx[datasets]'"
        ) from error
    return datasets


class SavedImages(Dataset[Any]):
    """The images of one split.

    Attributes:
        num_classes: How many classes it says it has, or the largest label and one.
    """

    def __init__(self, table: Any, transform: Transform, name: str) -> None:
        """Find the columns.

        Raises:
            DataError: When there is not one of images and one of labels, or a label is missing.
        """
        library = _library()
        features = table.features
        images = [key for key, kind in features.items() if isinstance(kind, library.Image)]
        labels = [key for key, kind in features.items() if isinstance(kind, library.ClassLabel)]
        labels = labels or [key for key in ("label", "labels") if key in features]
        for what, found in (("images", images), ("class labels", labels)):
            if len(found) != 1:
                raise DataError(
                    f"{name}: there must be one column of {what}, and there are {len(found)} "
                    f"among {', '.join(features)}"
                )
        self._image, self._label, self._name = images[0], labels[0], name
        self._transform = transform
        # As bytes: a sample that is damaged is then an error of ours, with its index.
        self._table = table.select_columns([self._image, self._label]).cast_column(
            self._image, library.Image(decode=False)
        )
        self.num_classes = self._classes(features[self._label])

    def _classes(self, kind: Any) -> int:
        from pyarrow import compute  # noqa: PLC0415 (of the same library)

        column = self._table.data.column(self._label)
        try:
            limits = compute.min_max(column)
            low, high = limits["min"].as_py(), limits["max"].as_py()
        except Exception as error:
            raise DataError(f"{self._name}: labels cannot be read ({describe(error)})") from error
        whole = isinstance(low, int) and isinstance(high, int)
        if not whole or not 0 <= low <= high < CLASSES or column.null_count:
            raise DataError(
                f"{self._name}: {self._label} must be whole numbers from 0, below {CLASSES:,}, and "
                "none may be missing"
            )
        return max(int(getattr(kind, "num_classes", 0) or 0), int(high) + 1)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, transformed, and its class.

        Raises:
            OSError: When it cannot be read or decoded.
            DamageError: When its path leads to no file.
        """
        row = self._table[index]
        image = row[self._image]
        if image is None or (image["bytes"] is None and not image["path"]):
            raise OSError("there is no image")
        if image["bytes"] is not None:
            made = decoded(io.BytesIO(image["bytes"]))
        else:
            check_regular(image["path"])  # to open a pipe would wait for ever
            with Path(image["path"]).open("rb") as file:
                made = decoded(file)
        return self._transform(made), int(row[self._label])

    def where(self, index: int) -> str:
        """``DIR, train, row 17``: where a sample lies, for messages."""
        return f"{self._name}, row {index}"
