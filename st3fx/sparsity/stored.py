"""Weights that lie in files: read some rows at a time, so that they may be larger than the memory.

All that is done with a weight whose groups and channels do not reach over its rows, along its first
dimension, can be done with some rows after the others, with the same bits: counting magnitudes,
applying a formula. Where they do reach over them the weight is read whole.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from st3fx.sparsity.granularity import Grouping, magnitudes, scores
from st3fx.sparsity.tally import HALF, Tally, first_bits_of, magnitudes_of

PIECE = 1 << 20
"""Weights that are read at a time: 4 MiB in single precision, of which caches hold the most."""

_ALIGNED = 64
"""Of so many weights each piece is a multiple, but the last: a power is rounded in another way in
what is left of a vector register than in whole ones."""


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not of the GNU C library
        return None
    return found


def give_back() -> None:
    """Give the system back what was freed: holes between tensors would add up to gigabytes."""
    trim = _trim()
    if trim is not None:
        trim(0)


@dataclass(frozen=True, eq=False)
class Lazy:
    """Values that are read, or computed, whenever they are looked at.

    Attributes:
        count: How many.
        dtype: Of what type.
        read: Gives them, in any shape.
    """

    count: int
    dtype: torch.dtype
    read: Callable[[], Tensor]
    _tallies: dict[float, Tally] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def numel(self) -> int:
        """How many values there are."""
        return self.count

    def detach(self) -> Tensor:
        """The values, now; they have no gradient."""
        return self.read()

    def tally(self, scale: float) -> Tally:
        """The scores by their first bits, counted when they are first asked for.

        Args:
            scale: What magnitudes are divided by.
        """
        if scale not in self._tallies:
            found = self.read().abs().float()
            self._tallies[scale] = first_bits_of(found if scale == 1.0 else found.div_(scale))
        return self._tallies[scale]


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight in a file.

    Attributes:
        shape: Its sizes, one or more.
        dtype: As it is stored.
        rows: ``rows(first, last)`` reads these of its rows: dense, in row-major order, on the CPU.
    """

    shape: torch.Size
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    _scored: dict[Grouping | None, list[Scored]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def device(self) -> torch.device:
        """Where its values are when they are read."""
        return torch.device("cpu")

    def numel(self) -> int:
        """How many weights it has."""
        return self.shape.numel()

    def detach(self) -> Stored:
        """Itself: it has no gradient."""
        return self

    def ends(self, grouping: Grouping | None, *, whole: bool = False) -> list[tuple[int, int]]:
        """The rows to read at a time: first and one after the last of each piece.

        Args:
            grouping: What is pruned together.
            whole: Whether all rows are to be read at once in any case.
        """
        count = self.shape[0]
        crossed = grouping is not None and (grouping.view > 1 or 0 in grouping.dims)
        width = max(1, math.prod(self.shape[1:]))
        unit = _ALIGNED // math.gcd(width, _ALIGNED)
        step = count if whole or crossed else max(1, PIECE // (width * unit)) * unit
        return [(first, min(first + step, count)) for first in range(0, count, max(1, step))]

    def parts(self, grouping: Grouping | None) -> Iterator[tuple[int, Tensor]]:
        """All weights piece by piece, each with the place of its first in the whole weight."""
        width = math.prod(self.shape[1:])
        for first, last in self.ends(grouping):
            yield first * width, self.rows(first, last)
        give_back()

    def tally(self, grouping: Grouping | None) -> Tally | None:
        """All magnitudes, counted one by one; ``None`` where they are too many for that."""
        found = self.scored(grouping)
        return found[0][0] if found and isinstance(found[0][0], Tally) else None

    def zeros(self, grouping: Grouping | None, scale: float) -> int:
        """How many weights are 0, of groups how many are in one that is.

        Args:
            grouping: What is pruned together.
            scale: What the search will divide magnitudes by, which then has them counted already.
        """
        if self.dtype == torch.float64:  # of which scores are rounded
            constants = () if grouping is None else (list(grouping.dims), *grouping[1:])
            return sum(
                part.numel() - int(torch.count_nonzero(magnitudes(part, *constants)))
                for _, part in self.parts(grouping)
            )
        tallies = (
            (own if isinstance(own, Tally) else own.tally(scale), gone)
            for own, _, gone in self.scored(grouping)
        )
        return sum(own.zeros * gone for own, gone in tallies)

    def scored(self, grouping: Grouping | None) -> list[Scored]:
        """What the search of the global threshold looks at.

        Returns:
            Of each piece the values to score, how many there are, and how many weights go with
            each; of groups of several sizes one for each size. Single weights in half precision
            are read now, and counted together.
        """
        if grouping not in self._scored:
            self._scored[grouping] = self._find_scored(grouping)
        return self._scored[grouping]

    def _find_scored(self, grouping: Grouping | None) -> list[Scored]:
        if grouping is None and self.dtype in HALF:
            tally = magnitudes_of((part for _, part in self.parts(None)), self.dtype)
            return [(tally, self.numel(), 1)]
        found: list[Scored] = []
        width = math.prod(self.shape[1:])
        for first, last in self.ends(grouping):
            if grouping is None:
                count = (last - first) * width
                read = _reader(self.rows, first, last)
                found.append((Lazy(count, self.dtype, read), count, 1))
                continue
            shape = (last - first, *self.shape[1:])
            sizes = scores(torch.empty(shape, device="meta"), shape, grouping)
            for index, (_, groups, weights) in enumerate(sizes):
                measure = _measurer(self.rows, (first, last), grouping, index)
                found.append((Lazy(groups, torch.float32, measure), groups, weights))
        return found


Scored = tuple[Lazy | Tally, int, int]
"""Of :meth:`Stored.scored`."""


def _reader(rows: Callable[[int, int], Tensor], first: int, last: int) -> Callable[[], Tensor]:
    return lambda: rows(first, last)


def _measurer(
    rows: Callable[[int, int], Tensor], ends: tuple[int, int], grouping: Grouping, index: int
) -> Callable[[], Tensor]:
    """Reads rows and gives the magnitudes of their groups of one size."""

    def measure() -> Tensor:
        part = rows(*ends)
        return scores(part, part.shape, grouping)[index].values

    return measure
