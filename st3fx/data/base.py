"""What is asked for (``DataSettings``) and what comes of it (``Data``)."""

from __future__ import annotations

import itertools
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from st3fx.core.state import preserved_rng
from st3fx.data.order import EpochSampler
from st3fx.errors import DataError


@dataclass(frozen=True)
class DataSettings:
    """Which data, and how it is read.

    Attributes:
        name: A name in ``DATASETS``, or ``loaders.py:make_loaders`` or ``package.module:callable``
            for loaders of the user's own.
        path: Folder of the data; ``None`` for the default place of sets that have one.
        batch_size: Training samples per batch and process.
        eval_batch_size: Test samples per batch and process; ``None`` is twice ``batch_size``, as
            evaluation keeps no activations for a backward pass.
        workers: Processes that read image files. Sets that are held in memory use none: fetching
            a batch from them costs less than sending it from another process.
        augment: Whether training samples are cropped and flipped at random.
        channels: 3 repeats a grey image; ``None`` keeps the set's own.
        image_size: Height and width in pixels. ``imagefolder`` crops to it (``None``: 224), sets
            in memory are resized (``None``: they keep their own).
        seed: Of the shuffling and the augmentation.

    Raises:
        DataError: When a number is outside its range.
    """

    name: str = "fashion-mnist-mini"
    path: str | None = None
    batch_size: int = 128
    eval_batch_size: int | None = None
    workers: int = 0
    augment: bool = True
    channels: int | None = None
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size", "channels", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more")
        if self.workers < 0:
            raise DataError(f"workers is {self.workers}; it must be 0 or more")

    @property
    def test_batch_size(self) -> int:
        """Samples per test batch and process: ``eval_batch_size`` or its default."""
        return self.eval_batch_size or 2 * self.batch_size


@dataclass(frozen=True)
class Data:
    """Loaders of training and test data.

    Each batch of them is a pair ``(inputs, targets)``.

    Attributes:
        train: Training data, shuffled. ``accelerate`` may shard it.
        test: Test data, in its own order, without augmentation.
        name: As in the settings.
        input_shape: Of one sample, e.g. ``(1, 28, 28)``; of a user's loaders ``None`` until
            ``example`` has been called.
        num_classes: How many classes there are; ``None`` where that is not known.
    """

    train: DataLoader[Any]
    test: DataLoader[Any]
    name: str
    input_shape: tuple[int, ...] | None
    num_classes: int | None

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffling and augmentation of the next pass over ``train``.

        Call it before each pass. It has effect on the loaders that ``accelerate`` makes from
        ``train`` too, as they keep its sampler, and on those of ``skip_first_batches``. A pass
        that has begun goes on in its own epoch. A user's loaders are given the epoch where their
        sampler, batch sampler or data set has a ``set_epoch``; ``accelerate`` calls that as well,
        with its own count, which ``set_epoch`` of the prepared loader sets.
        """
        sampler = self.train.sampler
        if isinstance(sampler, EpochSampler):
            sampler.epoch = epoch
            return
        # Looked up each time: accelerate may have put another sampler into the batch sampler.
        batch_sampler = self.train.batch_sampler
        inner = getattr(batch_sampler, "sampler", None)
        parts: dict[int, Any] = {
            id(part): part for part in (sampler, batch_sampler, inner, self.train.dataset)
        }
        for part in parts.values():
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def example(self, batch: int = 2) -> Any:
        """Inputs of the first training samples, as ``st3fx.convert`` takes them, on the CPU.

        No pass over ``train`` is begun, and the random generators are set back afterwards. (An
        iterable data set is iterated from its beginning; one that can be iterated only once loses
        these samples.)

        Args:
            batch: How many samples; fewer if the set is smaller.

        Raises:
            DataError: When a user's loader does not give pairs ``(inputs, targets)``.
        """
        with preserved_rng():
            fetched = _first_batch(self.train, batch)
        if not isinstance(fetched, tuple | list) or len(fetched) != 2:
            raise DataError(
                f"{self.name}: a batch of the training loader is {kind_of(fetched)}; "
                "it must be a pair (inputs, targets)"
            )
        inputs = fetched[0]
        if self.input_shape is None and isinstance(inputs, Tensor):
            # The one value that is found out later; for everyone else the object is constant.
            object.__setattr__(self, "input_shape", tuple(inputs.shape[1:]))
        return inputs


def _first_batch(loader: DataLoader[Any], count: int) -> Any:
    """The first samples of the loader's data set, collated; neither its sampler nor workers run."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        if loader.batch_size is None:
            return loader.collate_fn(next(iter(dataset)))
        return loader.collate_fn(list(itertools.islice(dataset, count)))
    if loader.batch_sampler is None:  # the data set gives whole batches
        return loader.collate_fn(dataset[0])
    if isinstance(dataset, Sized):
        count = min(count, len(dataset))
    indices = list(range(count))
    if hasattr(dataset, "__getitems__"):
        return loader.collate_fn(dataset.__getitems__(indices))
    return loader.collate_fn([dataset[index] for index in indices])


def kind_of(value: object) -> str:
    """What a value is, for messages: ``a dict``, ``a list of 3``, ``None``."""
    if value is None:
        return "None"
    name = type(value).__name__
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}{length}"
