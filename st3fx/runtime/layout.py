"""The blocked layout of image tensors (``ops.md``), in NumPy: shapes, and copies to and from it.

Sparse weights as the operators take them: the three arrays of ``ops.md``, of numbers or of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16
"""Tiles are as wide as a multiple of this many positions."""

TILE = 112
"""Positions of a full tile."""

BLOCK = 4
"""Channels of a block."""


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


def to_blocked(images: NDArray[Any]) -> NDArray[Any]:
    """A blocked copy ``[N, S, H, W]`` of ``[N, C, H, W]``; zeros where there is no position."""
    n, c, h, w = images.shape
    storage = np.zeros((n, storage_channels(c, h, w) * h * w), dtype=images.dtype)
    flat = images.reshape(n, c, h * w)
    for begin, width in _tiles(h * w):
        tile = np.zeros((n, c, width), dtype=images.dtype)
        tile[:, :, : min(width, h * w - begin)] = flat[:, :, begin : begin + width]
        storage[:, begin * c : (begin + width) * c] = tile.reshape(n, -1)
    return storage.reshape(n, -1, h, w)


def from_blocked(blocked: NDArray[Any], channels: int) -> NDArray[Any]:
    """The images ``[N, channels, H, W]`` of a blocked tensor."""
    n, _, h, w = blocked.shape
    storage = blocked.reshape(n, -1)
    tiles = [
        storage[:, begin * channels : (begin + width) * channels].reshape(n, channels, width)
        for begin, width in _tiles(h * w)
    ]
    return np.concatenate(tiles, axis=2)[:, :, : h * w].reshape(n, channels, h, w)


def blocks(channels: int) -> int:
    """Blocks of four channels that hold so many."""
    return -(-channels // BLOCK)


def to_blocked_bytes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A blocked copy ``[N, 4·S, H, W]`` of ``[N, C, H, W]``: four channels of a pixel together."""
    n, c, h, w = images.shape
    full = np.zeros((n, blocks(c) * BLOCK, h, w), dtype=np.uint8)
    full[:, :c] = images
    quads = full.reshape(n, -1, BLOCK, h, w).transpose(0, 1, 3, 4, 2)
    numbers = np.ascontiguousarray(quads).view(np.uint32).reshape(n, -1, h, w)
    return to_blocked(numbers).reshape(n, -1).view(np.uint8).reshape(n, -1, h, w)


def from_blocked_bytes(blocked: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """The images ``[N, channels, H, W]`` of a blocked tensor of bytes."""
    n, _, h, w = blocked.shape
    count = blocks(channels)
    numbers = np.ascontiguousarray(blocked).reshape(n, -1).view(np.uint32).reshape(n, -1, h, w)
    quads = np.ascontiguousarray(from_blocked(numbers, count)).view(np.uint8)
    images = quads.reshape(n, count, h, w, BLOCK).transpose(0, 1, 4, 2, 3)
    return np.ascontiguousarray(images.reshape(n, -1, h, w)[:, :channels])


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


@dataclass(frozen=True)
class SparseBlocks:
    """A matrix in compressed rows of blocks of four consecutive input channels.

    Attributes:
        values: ``[4 · blocks]`` int8, row after row.
        columns: ``[blocks]`` uint16, or uint32 where a row has more than 65,536 blocks.
        row_starts: ``[rows + 1]`` int32, the block at which each row begins.
    """

    values: NDArray[np.int8]
    columns: NDArray[np.uint16] | NDArray[np.uint32]
    row_starts: NDArray[np.int32]

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.columns)

    def dense(self, channels: int, kernel: tuple[int, ...] = ()) -> NDArray[np.int8]:
        """The weight ``[rows, channels, *kernel]`` with its zeros.

        Raises:
            ValueError: The last block of a row goes beyond the channels with other than zeros, or
                the arrays do not fit together.
            IndexError: A column is out of range.
        """
        taps = int(np.prod(kernel, dtype=np.int64))
        count = blocks(channels)
        matrix = np.zeros((len(self.row_starts) - 1, count * taps, BLOCK), dtype=np.int8)
        rows = np.repeat(np.arange(len(matrix)), np.diff(self.row_starts))
        matrix[rows, self.columns] = self.values.reshape(-1, BLOCK)
        by_channel = matrix.reshape(-1, count, taps, BLOCK).transpose(0, 1, 3, 2)
        full = by_channel.reshape(-1, count * BLOCK, *kernel)
        if full[:, channels:].any():
            raise ValueError(f"weights beyond {channels} channels")
        return np.ascontiguousarray(full[:, :channels])


def compress_blocks(weight: NDArray[np.int8]) -> SparseBlocks:
    """The blocks of a weight ``[K, C, ...]`` that have a nonzero.

    Args:
        weight: Its first axis is the rows, its second the input channels of a group; what follows
            are the taps of a kernel.
    """
    rows, channels, *kernel = weight.shape
    taps = int(np.prod(kernel, dtype=np.int64))
    full = np.zeros((rows, blocks(channels) * BLOCK, taps), dtype=np.int8)
    full[:, :channels] = weight.reshape(rows, channels, taps)
    quads = full.reshape(rows, -1, BLOCK, taps).transpose(0, 1, 3, 2).reshape(rows, -1, BLOCK)
    row, column = np.nonzero(quads.any(axis=2))
    narrow = quads.shape[1] <= 1 << 16
    return SparseBlocks(
        values=np.ascontiguousarray(quads[row, column]).reshape(-1),
        columns=column.astype(np.uint16) if narrow else column.astype(np.uint32),
        row_starts=np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(
            np.int32
        ),
    )
