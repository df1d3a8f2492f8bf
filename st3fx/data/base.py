"""What is asked for (``DataSettings``) and what comes of it (``Data``).

Randomness as a function: which sample comes when, and what is done to it.

Training data is an endless sequence. Sample ``i`` of epoch ``e`` in a set of ``n`` has the number
``e n + i``; the sampler gives numbers and the data set takes them apart again. So whoever reads a
sample, a worker, another process, a resumed run, knows its epoch without being told, and a pass
that has begun stays in its epoch.

What is drawn for a sample comes from a counter, not from a generator with a state:

.. math:: h(seed, e, i, k) = m(m(m(m(seed) + e) + i) + k)

where ``m`` is the step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, OOPSLA 2014), in arithmetic modulo 2⁶⁴.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from st3fx.errors import DataError, describe
from st3fx.loading.trust import USER, Permit
from st3fx.modules.state import preserved_rng

Words = NDArray[np.uint64]


class EpochSampler(Sampler[int]):
    """The numbers of one epoch's samples, in an order that seed and epoch fix.

    It is no ``RandomSampler``, so that ``accelerate`` does not put its own in its place, and has
    no ``set_epoch``, which ``accelerate`` would call with its own count of passes at the start of
    each: after a resumption that count begins at 0 again.

    Attributes:
        epoch: The epoch of the next pass.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Shuffle ``size`` samples."""
        self.epoch = 0
        self._size = size
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        # The epoch is read when the pass is begun, not when its first number is asked for.
        seed = int(draw(self._seed, np.array([self.epoch]), np.array([0]), 0)[0])
        generator = torch.Generator().manual_seed(seed >> 1)
        order = torch.randperm(self._size, generator=generator) + self.epoch * self._size
        return iter(order.tolist())

    def __len__(self) -> int:
        return self._size


def split(numbers: Sequence[int], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epochs and indices of the samples with these numbers in a set of ``size``."""
    epoch, index = np.divmod(np.asarray(numbers, dtype=np.int64), size)
    return epoch, index


def draw(seed: int, epoch: NDArray[np.int64], index: NDArray[np.int64], stream: int) -> Words:
    """64 random bits for each sample.

    Args:
        seed: Of the run; any integer.
        epoch: One per sample.
        index: Of the sample in its set.
        stream: Which of a sample's draws; different streams are independent.
    """
    start = np.full(1, seed % 2**64, dtype=np.uint64)
    state = mix(mix(mix(start) + epoch.astype(np.uint64)) + index.astype(np.uint64))
    return mix(state + np.uint64(stream))


def below(words: Words, limit: int) -> NDArray[np.int64]:
    """Integers in ``[0, limit)``, uniform to within ``limit / 2⁶⁴``."""
    return (words % np.uint64(limit)).astype(np.int64)


def mix(words: Words) -> Words:
    """The next output of SplitMix64 in the state ``words``."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True)
class DataSettings:
    """Say which data is read, and how.

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
        image_size: Height and width in pixels. Image files are cropped to it (``None``: 224), sets
            in memory are resized (``None``: they keep their own).
        seed: Of the shuffling and the augmentation.
        permit: On whose word loaders of the user's own run.

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
    permit: Permit = USER

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
    return loader.collate_fn(list(itertools.islice(_good(dataset), count)))


def _good(dataset: Any) -> Iterator[Any]:
    """Samples from the first on, without those that cannot be read: the loop says which.

    Raises:
        DataError: When none of the first can be.
    """
    first, found = None, False
    for index in range(min(len(dataset), _MOST) if isinstance(dataset, Sized) else _MOST):
        try:
            sample = dataset[index]
        except Exception as error:  # noqa: BLE001 (whatever a user's data set raises)
            first = first or error
        else:
            found = True
            yield sample
    if first is not None and not found:
        raise DataError(f"no sample of the data can be read: {describe(first)}") from first


_MOST = 1000
"""Samples that are tried for an example."""


def kind_of(value: object) -> str:
    """What a value is, for messages: ``a dict``, ``a list of 3``, ``None``."""
    if value is None:
        return "None"
    name = type(value).__name__
    length = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}{length}"
