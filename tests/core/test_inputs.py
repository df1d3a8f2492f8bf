"""The example: one call of the model, and the same call with one more sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from st3fx.core.inputs import Example
from st3fx.errors import InputError

X, Y = torch.randn(2, 3), torch.randn(2, 5)


@pytest.mark.parametrize(
    ("inputs", "kwargs", "expected"),
    [
        (X, None, ((X,), {})),
        ((X, 2), None, ((X, 2), {})),
        ([X, Y], None, (([X, Y],), {})),  # a list is one argument, as detectors take it
        ({"x": X}, None, ((), {"x": X})),
        ({"x": X}, {"y": Y}, ((), {"x": X, "y": Y})),
        ((X,), {"y": Y}, ((X,), {"y": Y})),
        ((), None, ((), {})),
    ],
)
def test_an_example(inputs: Any, kwargs: Any, expected: Any) -> None:
    example = Example.of(inputs, kwargs)
    assert repr((example.args, example.kwargs)) == repr(expected)


@pytest.mark.parametrize("inputs", [3, "x", None, 1.5])
def test_no_example(inputs: Any) -> None:
    with pytest.raises(InputError, match=f"is a {type(inputs).__name__}: give a tensor, a tuple"):
        Example.of(inputs)


def test_one_more_sample() -> None:
    example = Example((X, torch.zeros(7), 3), {"y": [Y], "scalar": torch.tensor(1.0)})
    larger = example.larger_batch()
    assert larger is not None
    assert torch.equal(larger.args[0], torch.cat([X, X[:1]]))
    assert larger.args[1].shape == (7,)
    assert larger.args[2] == 3
    assert larger.kwargs["y"][0].shape == (3, 5)
    assert larger.kwargs["scalar"].shape == ()


@pytest.mark.parametrize("args", [(), (3,), (torch.tensor(1.0),)])
def test_no_batch_to_grow(args: tuple[Any, ...]) -> None:
    assert Example(args, {}).larger_batch() is None
