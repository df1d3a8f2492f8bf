r"""Randomness as a function: which sample comes when, and what is done to it.

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

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

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
