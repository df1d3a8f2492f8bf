"""SparseLinear against torch in float64, on every instruction set that this CPU has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from st3fx import native
from tests.runtime import ops

ISAS = native.available_isas()


def linear(weight: ops.Array, bias: ops.Array | None, **attributes: Any) -> ops.Node:
    """A SparseLinear of a dense weight ``[K, C]``."""
    constants = ops.weight_inputs(weight)
    if bias is not None:
        constants["bias"] = bias
    return ops.Node(
        "SparseLinear",
        {"features": weight.shape[1], **attributes},
        ["x", "values", "columns", "row_starts", *(["bias"] if bias is not None else [])],
        constants,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "leading",
    [(), (1,), (2,), (16,), (3, 5), (150,), (2, 197)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_weights_on_the_right(isa: str, threads: int, leading: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    for rows, features, density in ((5, 3, 0.5), (130, 96, 0.1), (300, 257, 0.02), (64, 64, 0.9)):
        weight = ops.sparse_weight(generator, (rows, features), density)
        bias = generator.standard_normal(rows).astype(np.float32)
        x = generator.standard_normal((*leading, features)).astype(np.float32)
        result = linear(weight, bias).run(isa, threads, x=x)
        expected = torch.nn.functional.linear(
            *map(torch.from_numpy, map(np.float64, (x, weight, bias)))
        )
        ops.assert_close(result, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("leading", [(), (1,), (2, 3)])
@pytest.mark.parametrize("vectors", [1, 16, 49, 112, 130])
def test_weights_on_the_left(isa: str, leading: tuple[int, ...], vectors: int) -> None:
    generator = np.random.default_rng(1)
    weight = ops.sparse_weight(generator, (70, 40), 0.2)
    x = generator.standard_normal((*leading, 40, vectors)).astype(np.float32)
    expected = torch.from_numpy(weight).double() @ torch.from_numpy(x).double()
    ops.assert_close(linear(weight, None, side="left").run(isa, x=x), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("leading", [(), (20,)])
def test_activations(isa: str, activation: str, leading: tuple[int, ...]) -> None:
    generator = np.random.default_rng(2)
    weight = ops.sparse_weight(generator, (33, 50), 0.3)
    bias = generator.standard_normal(33).astype(np.float32)
    x = generator.standard_normal((*leading, 50)).astype(np.float32)
    expected = torch.nn.functional.linear(
        *map(torch.from_numpy, map(np.float64, (x, weight, bias)))
    )
    result = linear(weight, bias, **ops.ACTIVATIONS[activation]).run(isa, x=x)
    ops.assert_close(result, expected, activation)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 3])
def test_more_columns_than_sixteen_bits_hold(isa: str, count: int) -> None:
    generator = np.random.default_rng(3)
    weight = ops.sparse_weight(generator, (20, 70_000), 0.001)
    weight[0, -1] = weight[0, 65_536] = 1.0
    node = linear(weight, None)
    assert node.constants["columns"].dtype == np.uint32
    x = generator.standard_normal((count, 70_000)).astype(np.float32)
    expected = torch.from_numpy(x).double() @ torch.from_numpy(weight).double().T
    ops.assert_close(node.run(isa, x=x), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_no_vectors(isa: str) -> None:
    weight = ops.sparse_weight(np.random.default_rng(4), (6, 4), 0.5)
    assert linear(weight, None).run(isa, x=np.zeros((0, 4), np.float32)).shape == (0, 6)
