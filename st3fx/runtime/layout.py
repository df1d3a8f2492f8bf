"""The blocked layout of image tensors (``ops.md``), in NumPy: shapes, and copies to and from it."""

from __future__ import annotations

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
