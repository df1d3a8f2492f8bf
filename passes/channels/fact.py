"""What is known of a tensor before the model runs: its channels, and where it is constant.

Channels of a graph: which of them are one, which must stay, and who multiplies with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]
"""One channel for each index of a dimension."""

Mask = npt.NDArray[np.bool_]

MIXED = "it is one with an index that has to stay"


@dataclass(frozen=True)
class Kept:
    """Which channels stay.

    Attributes:
        alive: By channel.
    """

    alive: Mask

    def of(self, ids: Ids) -> Mask:
        """Which of these stay."""
        kept: Mask = self.alive[ids]
        return kept

    def count(self, ids: Ids) -> int:
        """How many of these stay."""
        return int(np.count_nonzero(self.alive[ids]))

    def places(self, ids: Ids) -> Ids:
        """Positions, among these, of those that stay."""
        found: Ids = np.flatnonzero(self.alive[ids])
        return found


Mark: TypeAlias = tuple[int, ...]
"""A place in the notes: how many there were of each kind."""


class Coupling:
    """Which channels are one, and which stay."""

    def __init__(self) -> None:
        self._count = 0
        self._ties: list[tuple[Ids, Ids]] = []
        self._pins: list[tuple[Ids, str]] = []

    @property
    def size(self) -> int:
        """How many channels there are."""
        return self._count

    def fresh(self, size: int) -> Ids:
        """New channels."""
        ids = np.arange(self._count, self._count + size)
        self._count += size
        return ids

    def fixed(self, size: int, reason: str) -> Ids:
        """New channels that stay."""
        ids = self.fresh(size)
        self.pin(ids, reason)
        return ids

    def pin(self, ids: Ids | None, reason: str) -> None:
        """Let channels stay."""
        if ids is not None and ids.size:
            self._pins.append((ids.reshape(-1), reason))

    def tie(self, first: Ids | None, second: Ids | None) -> Ids | None:
        """Make channels one, index by index; ``None`` stands for indices that have to stay."""
        if first is None or second is None:
            self.pin(first, MIXED)
            self.pin(second, MIXED)
            return None
        if first is not second:
            self._ties.append((first, second))
        return first

    def merge(self, rows: Ids) -> Ids:
        """Make all channels of each row one; the first column stands for them. (n, m) -> (n,)."""
        for column in range(1, rows.shape[1]):
            self.tie(rows[:, 0], rows[:, column])
        merged: Ids = rows[:, 0]
        return merged

    def classes(self) -> Ids:
        """For each channel, the smallest one that it is one with."""
        labels: Ids = np.arange(self._count)
        if not self._ties:
            return labels
        first = np.concatenate([a.reshape(-1) for a, _ in self._ties])
        second = np.concatenate([b.reshape(-1) for _, b in self._ties])
        while True:
            before = labels
            low = np.minimum(labels[first], labels[second])
            labels = labels.copy()
            np.minimum.at(labels, before[first], low)
            np.minimum.at(labels, before[second], low)
            labels = labels[labels]
            if np.array_equal(labels, before):
                return labels

    def mark(self) -> Mark:
        """How much has been noted so far."""
        return tuple(len(notes) for notes in self._notes)

    def rewind(self, mark: Mark) -> None:
        """Forget what was noted since."""
        for notes, length in zip(self._notes, mark, strict=True):
            del notes[length:]

    def ties_since(self, mark: Mark) -> list[tuple[Ids, Ids]]:
        """Channels that were made one since."""
        return self._ties[mark[0] :]

    @property
    def _notes(self) -> tuple[list[Any], ...]:
        return self._ties, self._pins

    def pins(self) -> list[tuple[Ids, str]]:
        """Channels that stay whatever is read, with reasons."""
        return self._pins


Axes = tuple[Ids | None, ...]
"""Channels of each dimension; ``None`` where no index can go."""


@dataclass(frozen=True)
class Slices:
    """A tensor that is constant at some indices of one dimension, for every input.

    Attributes:
        axis: The dimension.
        values: One for each of its indices; meaningless where it is not known.
        known: At which indices the tensor has that value everywhere.
    """

    axis: int
    values: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        """Give what is not known a value that no operator stumbles over."""
        object.__setattr__(self, "values", torch.where(self.known, self.values, 1))

    @classmethod
    def unknown(cls, axis: int, size: int, dtype: torch.dtype) -> Slices:
        """Nothing is known of any index."""
        return cls(axis, torch.ones(size, dtype=dtype), torch.zeros(size, dtype=torch.bool))

    @property
    def everywhere(self) -> bool:
        """Whether the whole tensor is constant."""
        return bool(self.known.all())

    def moved(self, axis: int) -> Slices:
        """The same along another dimension."""
        return Slices(axis, self.values, self.known)


@dataclass(frozen=True)
class Fact:
    """What is known of one tensor.

    Attributes:
        shape: Numbers, and expressions for sizes that are free.
        axes: Channels.
        constant: Where it is constant; ``None`` where nothing is known.
        tensor: Its values, if it is made of parameters and buffers alone.
    """

    shape: tuple[Any, ...]
    axes: Axes
    constant: Slices | None = None
    tensor: Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def slices(self, axis: int, rank: int, size: int) -> Slices | None:
        """Constants along a dimension of the result that this tensor is broadcast to.

        Args:
            axis: Dimension of the result.
            rank: Of the result.
            size: Of that dimension.
        """
        own = axis - (rank - self.rank)
        if self.tensor is not None:
            rows = self.tensor.reshape((1,) * (rank - self.rank) + tuple(self.tensor.shape))
            rows = rows.movedim(axis, 0).flatten(1)
            found = Slices(axis, rows[:, 0], (rows == rows[:, :1]).all(1))
        elif self.constant is not None and own == self.constant.axis:
            found = self.constant.moved(axis)
        elif self.constant is not None and self.constant.everywhere and _uniform(self.constant):
            found = Slices(axis, self.constant.values[:1], self.constant.known[:1])
        else:
            return None
        return Slices(axis, found.values.expand(size), found.known.expand(size))


def _uniform(constant: Slices) -> bool:
    return bool((constant.values == constant.values[0]).all())
