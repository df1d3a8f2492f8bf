"""Bytes in blocks of four channels, and sparse rows of such blocks."""

from __future__ import annotations

import numpy as np
import pytest

from st3fx.runtime.layout import (
    SparseBlocks,
    compress_blocks,
    from_blocked_bytes,
    storage_channels,
    to_blocked_bytes,
)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 18])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (11, 13), (15, 16)])
def test_bytes_come_back(channels: int, size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, channels, *size), np.uint8)
    blocked = to_blocked_bytes(images)
    storage = storage_channels(-(-channels // 4), *size)
    assert blocked.shape == (2, 4 * storage, *size)
    assert np.array_equal(from_blocked_bytes(blocked, channels), images)


def test_four_channels_of_a_pixel_lie_together_tile_by_tile() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 10, 13), np.uint8)
    storage = to_blocked_bytes(images).reshape(2, -1)
    for channel, pixel in ((0, 0), (3, 111), (4, 111), (5, 112), (2, 129)):
        tile, width = (0, 112) if pixel < 112 else (112, 32)
        place = 4 * (tile * 2 + (channel // 4) * width + pixel - tile) + channel % 4
        assert storage[1, place] == images[1, channel, pixel // 13, pixel % 13]


@pytest.mark.parametrize("shape", [(3, 4), (5, 9), (2, 8, 3, 2), (4, 3, 7, 7), (1, 1, 1, 1)])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_blocks_hold_the_weight(shape: tuple[int, ...], share: float) -> None:
    generator = np.random.default_rng(1)
    weight = generator.integers(-128, 128, shape, np.int8) * (generator.random(shape) < share)
    sparse = compress_blocks(weight.astype(np.int8))
    assert sparse.values.dtype == np.int8
    assert len(sparse.values) == 4 * sparse.blocks
    assert sparse.values.reshape(-1, 4).any(axis=1).all()
    assert np.array_equal(sparse.dense(shape[1], shape[2:]), weight)


def test_columns_are_block_then_tap() -> None:
    weight = np.zeros((2, 9, 3, 3), np.int8)
    weight[0, 5, 1, 2] = 7
    weight[1, 8, 2, 0] = -3
    sparse = compress_blocks(weight)
    assert sparse.columns.tolist() == [1 * 9 + 5, 2 * 9 + 6]
    assert sparse.values.tolist() == [0, 7, 0, 0, -3, 0, 0, 0]
    assert sparse.row_starts.tolist() == [0, 1, 2]
    assert sparse.columns.dtype == np.uint16


def test_many_blocks_take_wider_columns() -> None:
    weight = np.zeros((1, 4 * 65_537), np.int8)
    weight[0, -1] = 1
    sparse = compress_blocks(weight)
    assert sparse.columns.dtype == np.uint32
    assert sparse.columns.tolist() == [65_536]


def test_a_weight_beyond_the_channels_is_refused() -> None:
    damaged = SparseBlocks(
        np.array([0, 0, 0, 1], np.int8), np.zeros(1, np.uint16), np.array([0, 1], np.int32)
    )
    with pytest.raises(ValueError, match="beyond 3 channels"):
        damaged.dense(3)
