"""The dense counterpart of a graph with zeros."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from st3fx.bench.variant import Array
from st3fx.export.write import write_model

_SCALE = 0.1


def write_dense(source: Path, target: Path, names: Collection[str]) -> int:
    """Write a graph without its zeros.

    Every zero becomes a random number, so small that what a layer computes keeps its size: times
    are not to depend on infinities.

    Args:
        source: The ONNX file.
        target: The file to write.
        names: The initializers whose zeros are meant.

    Returns:
        How many zeros there were. Where there were none, nothing is written.
    """
    model = ir.load(source)
    generator = np.random.default_rng(0)
    count = 0
    for name in names:
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        array = value.const_value.numpy()
        zeros = int(array.size - np.count_nonzero(array))
        if zeros:
            value.const_value = ir.tensor(_filled(array, zeros, generator), name=name)
            count += zeros
    if count:
        write_model(model, target)
    return count


def _filled(array: Array, zeros: int, generator: np.random.Generator) -> Array:
    left = array[array != 0].astype(np.float64)
    # All that is new adds _SCALE² to the sum of squares of what is left.
    size = _SCALE * np.sqrt(np.square(left).sum() / zeros) if left.size else _SCALE**2
    noise = size * generator.uniform(0.5, 1.5, zeros) * generator.choice((-1.0, 1.0), zeros)
    filled = array.copy()
    filled[array == 0] = noise.astype(array.dtype)
    return filled
