"""Sizes and values of inputs."""

from __future__ import annotations

import numpy as np
import pytest

from st3fx.bench.onnx_file import InputPort, check_same, default_batch, sized, values
from st3fx.errors import BenchError

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = InputPort("x", FLOAT, ("batch", 3, "h", "w"))
IDS = InputPort("ids", INT, ("n", "length"))
MASK = InputPort("mask", INT, ("n", 1, "n"))
FIXED = InputPort("x", FLOAT, (2, 3))
SCALAR = InputPort("scale", FLOAT, ())


def test_the_batch_fills_what_is_free_and_what_has_its_name() -> None:
    ports = [InputPort("x", FLOAT, ("n", 3)), MASK, SCALAR]
    assert sized(ports, 4) == ((4, 3), (4, 1, 4), ())
    assert sized([InputPort("x", FLOAT, ("?", 3))], 4) == ((4, 3),)


def test_given_shapes_fill_the_rest_and_the_batch_wins() -> None:
    assert sized([IMAGE], 8, [(1, 3, 64, 32)]) == ((8, 3, 64, 32),)
    assert sized([IDS, MASK], 2, [(1, 128), (1, 1, 1)]) == ((2, 128), (2, 1, 2))


@pytest.mark.parametrize(
    ("ports", "shapes", "batch"),
    [
        ([IMAGE], [], 1),
        ([IMAGE], [(5, 3, 8, 8)], 5),
        ([FIXED], [], 2),
        ([SCALAR], [], 1),
        ([SCALAR, FIXED], [], 2),
    ],
)
def test_the_batch_where_none_is_asked_for(
    ports: list[InputPort], shapes: list[tuple[int, ...]], batch: int
) -> None:
    assert default_batch(ports, shapes) == batch


@pytest.mark.parametrize(
    ("ports", "shapes", "message"),
    [
        (
            [IMAGE],
            [],
            (
                "axis 'h' (dimension 2) of input x, batch x 3 x h x w, has no size: give the "
                "input's by --input, as 1x3xNxN with a number for each N"
            ),
        ),
        ([InputPort("x", FLOAT, (1, "?"))], [], "an axis (dimension 1) of input x, 1 x ?, has no"),
        ([FIXED], [], "the graph is made for batch 2, not 4: measure it at that size, or export"),
        ([FIXED], [(2, 4)], "input x is 2 x 3 in the graph, not 2x4"),
        ([IMAGE], [(2, 4)], "input x is batch x 3 x h x w in the graph, not 2x4"),
        (
            [IMAGE],
            [(50,)],
            (
                "input x is batch x 3 x h x w in the graph, not 50; for a number of calls, give "
                "--iterations"
            ),
        ),
        (
            [IDS, MASK],
            [(1, 8)],
            "1 shapes for 2 inputs of the graph (ids, mask): give --input once for each, in this",
        ),
    ],
)
def test_what_does_not_fit(
    ports: list[InputPort], shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(BenchError) as caught:
        sized(ports, 4, shapes)
    assert str(caught.value).startswith(message)


def test_values_follow_type_and_seed() -> None:
    ports = [IMAGE, IDS, InputPort("b", np.dtype(bool), (2,)), InputPort("c", INT, (9, 9))]
    shapes = [(2, 3, 4, 4), (2, 50), (2,), (9, 9)]
    made = values(ports, shapes, seed=3)
    assert [array.dtype for array in made] == [port.dtype for port in ports]
    assert [array.shape for array in made] == shapes
    assert set(np.unique(made[1])) == {0, 1}
    assert 0.7 < made[0].std() < 1.3
    again = values(ports, shapes, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert not np.array_equal(made[0], values(ports, shapes, seed=4)[0])


def test_models_that_are_made_for_other_sizes_are_not_compared() -> None:
    images = [(1, 3, 224, 224)]
    check_same([("a", images), ("b", images), ("c", [(1, 224, 224, 3)])])
    check_same([("a", images), ("b", [*images, (1, 10)])])
    with pytest.raises(
        BenchError,
        match=r"a is called with 1x3x224x224, but c with 1x3x192x192: their times do not compare; "
        r"give all of them one size by --input \(-i\)",
    ):
        check_same([("a", images), ("b", images), ("c", [(1, 3, 192, 192)])])
    with pytest.raises(BenchError, match="1x3x224x224, but b with 1x8, a scalar: "):
        check_same([("a", images), ("b", [(1, 8), ()])])
