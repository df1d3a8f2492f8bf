"""Image sets held in memory as one uint8 tensor, with whole batches augmented at once.

Augmentation is that of He et al. 2015 for CIFAR: a random crop of the image padded with black, and
a horizontal flip of every second image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from st3fx.data.base import Data, DataSettings, EpochSampler, below, draw, split
from st3fx.errors import DataError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        images: uint8, samples × channels × height × width.
        labels: int64, one per sample.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of a training set, in units of the full range: 0 is black, 1 is white.

    Attributes:
        mean: One per channel.
        std: One per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


class TensorImages(Dataset[Batch]):
    """Normalised images with their labels, a batch per fetch.

    A number past the set's end is a sample of a later epoch (see ``st3fx.data.base``).
    """

    def __init__(
        self,
        content: Images,
        statistics: Statistics,
        *,
        padding: int = 0,
        flip: bool = False,
        seed: int = 0,
        channels: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Hold ``content``, padded.

        Args:
            content: Images and labels.
            statistics: What to normalise by.
            padding: Black pixels on each side that a random crop may reach; 0 crops nothing.
            flip: Whether every second image is flipped.
            seed: Of the augmentation.
            channels: 3 repeats a grey image.
            image_size: Height and width to resize to, in pixels.
        """
        size = tuple(content.images.shape[2:])
        padded = F.pad(content.images, (padding,) * 4).numpy()
        # A view of every crop of every image: NumPy copies a batch of them in one indexing.
        self._crops = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
        self._labels = content.labels
        # Shift and scale as two operations: a fused one could round otherwise in another place of
        # the batch.
        self._mean = 255 * torch.tensor(statistics.mean).reshape(-1, 1, 1)
        self._scale = 1 / (255 * torch.tensor(statistics.std).reshape(-1, 1, 1))
        self._padding, self._flip, self._seed = padding, flip, seed
        self._channels, self._image_size = channels, image_size

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: int) -> Batch:
        images, labels = self.__getitems__([number])
        return images[0], labels[0]

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """The samples with these numbers: float32 images in NCHW, int64 labels."""
        epoch, index = split(numbers, len(self))
        dy = dx = np.zeros_like(index)
        if self._padding:
            dy, dx = (
                below(draw(self._seed, epoch, index, stream), 2 * self._padding + 1)
                for stream in (0, 1)
            )
        images = torch.from_numpy(self._crops[index, :, dy, dx])
        if self._flip:
            flipped = torch.from_numpy(below(draw(self._seed, epoch, index, 2), 2) == 1)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        values = images.float().sub_(self._mean).mul_(self._scale)
        if self._image_size is not None and self._image_size != values.shape[-1]:
            size = (self._image_size, self._image_size)
            values = F.interpolate(values, size, mode="bilinear", antialias=True)
        if self._channels is not None and self._channels != values.shape[1]:
            values = values.repeat(1, self._channels, 1, 1)
        return values, self._labels[torch.from_numpy(index)]


def make_loaders(
    settings: DataSettings,
    train: Images,
    test: Images,
    statistics: Statistics,
    *,
    padding: int,
    num_classes: int,
) -> Data:
    """Loaders over two sets in memory.

    Training batches are all full: what is left over of an epoch is dropped, other samples in each.

    Raises:
        DataError: When the settings do not fit the set.
    """
    own = train.images.shape[1]
    channels = settings.channels or own
    if channels not in (own, 3):
        raise DataError(
            f"{settings.name} has images of {own} channels, and --channels is {channels}; "
            f"it may be {' or '.join(str(n) for n in sorted({own, 3}))}"
        )
    common: dict[str, Any] = {"channels": channels, "image_size": settings.image_size}
    augmented = TensorImages(
        train,
        statistics,
        padding=padding if settings.augment else 0,
        flip=settings.augment,
        seed=settings.seed,
        **common,
    )
    plain = TensorImages(test, statistics, **common)
    size = settings.image_size
    height, width = (size, size) if size else train.images.shape[2:]
    return Data(
        train=shuffled_loader(augmented, settings, collate_fn=identity),
        test=ordered_loader(plain, settings, collate_fn=identity),
        name=settings.name,
        input_shape=(channels, int(height), int(width)),
        num_classes=num_classes,
    )


def shuffled_loader(dataset: Any, settings: DataSettings, **more: Any) -> DataLoader[Any]:
    """A shuffled loader of full batches.

    Raises:
        DataError: When not one batch is full.
    """
    if len(dataset) < settings.batch_size:
        raise DataError(
            f"--batch-size {settings.batch_size} is more than the {len(dataset)} training samples "
            f"of {settings.name}; give a smaller one"
        )
    sampler = EpochSampler(len(dataset), settings.seed)
    return _loader(dataset, batch_size=settings.batch_size, sampler=sampler, drop_last=True, **more)


def ordered_loader(dataset: Any, settings: DataSettings, **more: Any) -> DataLoader[Any]:
    """A loader of all samples in their order."""
    return _loader(dataset, batch_size=settings.test_batch_size, **more)


def _loader(dataset: Any, **settings: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        pin_memory=torch.cuda.is_available(),
        # Each pass draws a number for its workers. From a generator of its own, so that dropout
        # and the like draw the same whether or not a run was interrupted.
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


def identity(batch: Any) -> Any:
    """The batch as the data set gives it. Named, as workers that are spawned must find it."""
    return batch
