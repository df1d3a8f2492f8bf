"""The blocked layout of image tensors (``ops.md``), in NumPy: shapes, and copies to and from it.

Sparse weights as the operators take them: the three arrays of ``ops.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LANES = 16
"""Tiles are as wide as a multiple of this many positions."""

TILE = 112
"""Positions of a full tile."""


def storage_channels(channels: int, height: int, width: int) -> int:
    """Channels that a blocked tensor is declared with, so that it has room for ``channels``.

    The smallest S for which ``S · height · width`` is a multiple of 16 and at least ``channels``
    times the positions rounded up to 16.
    """
    positions = height * width
    if positions == 0:
        return channels
    storage = -(-channels * _padded(positions) // positions)
    step = LANES // int(np.gcd(positions, LANES))
    return -(-storage // step) * step


def to_blocked(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """A blocked copy ``[N, S, H, W]`` of ``[N, C, H, W]``; zeros where there is no position."""
    n, c, h, w = images.shape
    storage = np.zeros((n, storage_channels(c, h, w) * h * w), dtype=np.float32)
    flat = images.reshape(n, c, h * w)
    for begin, width in _tiles(h * w):
        tile = np.zeros((n, c, width), dtype=np.float32)
        tile[:, :, : min(width, h * w - begin)] = flat[:, :, begin : begin + width]
        storage[:, begin * c : (begin + width) * c] = tile.reshape(n, -1)
    return storage.reshape(n, -1, h, w)


def from_blocked(blocked: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """The images ``[N, channels, H, W]`` of a blocked tensor."""
    n, _, h, w = blocked.shape
    storage = blocked.reshape(n, -1)
    tiles = [
        storage[:, begin * channels : (begin + width) * channels].reshape(n, channels, width)
        for begin, width in _tiles(h * w)
    ]
    return np.concatenate(tiles, axis=2)[:, :, : h * w].reshape(n, channels, h, w)


def _padded(positions: int) -> int:
    return -(-positions // LANES) * LANES


def _tiles(positions: int) -> list[tuple[int, int]]:
    """First position and width of each tile."""
    padded = _padded(positions)
    return [(begin, min(TILE, padded - begin)) for begin in range(0, padded, TILE)]


@dataclass(frozen=True)
class SparseWeights:
    """A matrix in compressed rows.

    Attributes:
        values: ``[nnz]`` float32, the nonzeros row after row.
        columns: ``[nnz]`` uint16, or uint32 where a row has more than 65,536 columns.
        row_starts: ``[rows + 1]`` int32, where each row begins.
    """

    values: NDArray[np.float32]
    columns: NDArray[np.uint16] | NDArray[np.uint32]
    row_starts: NDArray[np.int32]

    @property
    def nonzeros(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.values.nbytes + self.columns.nbytes + self.row_starts.nbytes

    def dense(self, columns: int) -> NDArray[np.float32]:
        """The matrix ``[rows, columns]`` with its zeros."""
        matrix = np.zeros((len(self.row_starts) - 1, columns), dtype=np.float32)
        rows = np.repeat(np.arange(len(matrix)), np.diff(self.row_starts))
        matrix[rows, self.columns] = self.values
        return matrix


def compress(weight: NDArray[np.float32]) -> SparseWeights:
    """The nonzeros of a weight, its first axis being the rows and the others flattened.

    A negative zero is a zero. NaN is a nonzero.
    """
    matrix = weight.reshape(len(weight), -1)
    rows, columns = np.nonzero(matrix)
    counts = np.bincount(rows, minlength=len(matrix))
    narrow = matrix.shape[1] <= 1 << 16
    return SparseWeights(
        values=np.ascontiguousarray(matrix[rows, columns], dtype=np.float32),
        columns=columns.astype(np.uint16) if narrow else columns.astype(np.uint32),
        row_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )
