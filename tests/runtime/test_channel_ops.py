"""Sums, scaling, concatenation, means and layouts, on every instruction set that this CPU has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st3fx import native
from st3fx.runtime import layout
from tests.runtime import ops

ISAS = native.available_isas()
SIZES = [(1, 1), (7, 7), (14, 14), (9, 31)]
NAMES = ["nchw", "blocked"]


def images(channels: int, size: tuple[int, int], seed: int = 0) -> ops.Array:
    """Two images."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((2, channels, *size)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_global_average(isa: str, name: str, size: tuple[int, int]) -> None:
    x = images(37, size)
    node = ops.Node("ImageGlobalAveragePool", {"channels": 37, "input_layout": name}, ["x"])
    expected = torch.from_numpy(x).double().mean((2, 3), keepdim=True)
    ops.assert_close(node.run(isa, x=ops.place(x, name)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_sum(isa: str, size: tuple[int, int], activation: str) -> None:
    x, z = images(13, size), images(13, size, seed=1)
    expected = ops.activated(torch.from_numpy(x).double() + torch.from_numpy(z), activation)
    node = ops.Node("ImageAdd", ops.ACTIVATIONS[activation], ["x", "z"])
    for name in NAMES:
        result = node.run(isa, 2, x=ops.place(x, name), z=ops.place(z, name))
        ops.assert_close(ops.plain(result, name, 13), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_scale(isa: str, name: str, size: tuple[int, int]) -> None:
    x, factor = images(21, size), images(21, (1, 1), seed=1)
    node = ops.Node("ChannelScale", {"channels": 21, "layout": name}, ["x", "s"])
    result = ops.plain(node.run(isa, x=ops.place(x, name), s=factor), name, 21)
    assert np.array_equal(result, x * factor)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_concatenation(name: str, size: tuple[int, int]) -> None:
    parts = {f"x{i}": images(c, size, seed=i) for i, c in enumerate((5, 16, 1))}
    node = ops.Node("ImageConcat", {"channels": (5, 16, 1), "layout": name}, list(parts))
    result = node.run(None, 2, **{k: ops.place(x, name) for k, x in parts.items()})
    assert np.array_equal(ops.plain(result, name, 22), np.concatenate(list(parts.values()), 1))


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("size", [*SIZES, (56, 56), (1, 113)])
def test_layout(source: str, target: str, size: tuple[int, int]) -> None:
    x = images(10, size)
    attributes = {"channels": 10, "input_layout": source, "output_layout": target}
    node = ops.Node("Layout", attributes, ["x"])
    result = node.run(None, 2, x=ops.place(x, source))
    assert result.shape == ops.place(x, target).shape
    assert np.array_equal(ops.plain(result, target, 10), x)


@pytest.mark.parametrize("size", [*SIZES, (3, 5), (112, 112), (224, 224), (4, 4)])
@pytest.mark.parametrize("channels", [1, 3, 64])
def test_blocked_layout_round_trip(channels: int, size: tuple[int, int]) -> None:
    x = images(channels, size)
    blocked = layout.to_blocked(x)
    storage, positions = blocked.shape[1], size[0] * size[1]
    assert np.array_equal(layout.from_blocked(blocked, channels), x)
    room = channels * -(-positions // 16) * 16
    fits = [
        s for s in range(channels, storage + 1) if s * positions % 16 == 0 and s * positions >= room
    ]
    assert fits == [storage]
