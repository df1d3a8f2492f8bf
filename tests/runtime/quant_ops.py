"""A quantized operator on every instruction set, equal bit for bit to the reference in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from st3fx.runtime.layout import compress_blocks, from_blocked_bytes, to_blocked_bytes
from tests.runtime.ops import Node
from tests.runtime.quant_reference import reference

Array = NDArray[Any]
Generator = np.random.Generator


def images(generator: Generator, *shape: int) -> Array:
    """Random bytes ``[N, C, H, W]`` in blocks; what has no meaning is random too."""
    blocked = to_blocked_bytes(generator.integers(0, 256, shape, np.uint8))
    used = to_blocked_bytes(np.ones(shape, np.uint8)) != 0
    noise = generator.integers(0, 256, blocked.shape, np.uint8)
    return np.where(used, blocked, noise).astype(np.uint8)


def weight(generator: Generator, shape: tuple[int, ...], density: float) -> Array:
    """int8 weights of all sizes, of whose blocks along the second axis a share is not zero."""
    rows, channels, *kernel = shape
    kept = generator.random((rows, -(-channels // 4), *kernel)) < density
    values = generator.integers(-128, 128, shape, np.int8)
    mask = np.repeat(kept, 4, axis=1)[:, :channels]
    return (values * mask).astype(np.int8)


def sparse_inputs(dense: Array) -> dict[str, Array]:
    """The three constants of a weight."""
    sparse = compress_blocks(dense)
    return {"values": sparse.values, "columns": sparse.columns, "row_starts": sparse.row_starts}


def check(
    op: str,
    feeds: dict[str, Array],
    constants: dict[str, Array],
    attributes: dict[str, Any],
    *,
    order: str,
    channels: int | None = None,
    isa: str | None = None,
    threads: int = 1,
) -> None:
    """Runs an operator, and compares.

    Args:
        op: Its name.
        feeds: Name -> what a call gives.
        constants: Name -> initializer.
        attributes: Of the node.
        order: Names of the inputs, ``-`` where one is left out.
        channels: Of the output where it is blocked.
        isa: Instruction set.
        threads: Of the session.
    """
    names = ["" if name == "-" else name for name in order.split()]
    known = feeds | constants
    expected = reference(op, [known.get(name) for name in names], attributes)
    types = {name: int(helper.np_dtype_to_tensor_dtype(a.dtype)) for name, a in feeds.items()}
    types["y"] = int(helper.np_dtype_to_tensor_dtype(expected.dtype))
    result = Node(op, attributes, names, constants, types).run(isa, threads, **feeds)
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if channels is not None:
        result, expected = (from_blocked_bytes(value, channels) for value in (result, expected))
    wrong = np.argwhere(result != expected)
    assert not len(wrong), (
        f"{len(wrong)} of {expected.size} differ, first at {wrong[0]}: "
        f"{result[tuple(wrong[0])]}, not {expected[tuple(wrong[0])]}"
    )
