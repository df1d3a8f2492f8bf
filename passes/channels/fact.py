"""What is known of a tensor before the model runs: its channels, and where it is constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from st3fx.passes.channels.coupling import Ids

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
