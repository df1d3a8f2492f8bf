"""The example: one call of the model, and the same call with one more sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from st3fx.errors import InputError
from st3fx.plan.example import Call, Example, examples_of

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


class Batch(NamedTuple):
    x: Tensor
    y: Tensor


class OneBatch(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch


class TwoTensors(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return x, y


class AnyNames(nn.Module):
    def forward(self, **tensors: Tensor) -> Any:
        return tensors


PACKED = nn.utils.rnn.pack_sequence([torch.randn(3, 2), torch.randn(2, 2)])


@pytest.mark.parametrize(
    ("model", "inputs", "is_one"),
    [
        (OneBatch(), Batch(X, Y), True),
        (TwoTensors(), Batch(X, Y), False),
        (OneBatch(), {"x": X, "y": Y}, True),
        (OneBatch(), {"batch": X}, False),
        (TwoTensors(), {"x": X, "y": Y}, False),
        (AnyNames(), {"x": X}, False),
        (OneBatch(), {0: X}, True),
        (OneBatch(), PACKED, True),
        (TwoTensors(), PACKED, True),
        (OneBatch(), (X,), False),
        (None, Batch(X, Y), False),
        (None, {"x": X}, False),
        (None, PACKED, True),
    ],
)
def test_a_container_that_is_the_only_argument(model: Any, inputs: Any, is_one: bool) -> None:
    example = Example.of(inputs, model=model)
    assert (example.args == (inputs,) and example.args[0] is inputs) is is_one


def test_calls() -> None:
    model = TwoTensors()
    assert repr(Call(X, 3, method="encode", y=Y)) == "Call(encode(Tensor, int, y: Tensor))"
    examples = examples_of([(X,), Call(X, y=Y), Call(method="eval"), {"x": X}], None, model)
    assert [(len(e.args), list(e.kwargs), e.method) for e in examples] == [
        (1, [], "forward"), (1, ["y"], "forward"), (0, [], "eval"), (0, ["x"], "forward")
    ]  # fmt: skip
    (single,) = examples_of([X, Y], None, model)  # no call in it: one argument, a list
    assert single.args == ([X, Y],)
    (alone,) = examples_of(Call(X), {"y": Y}, model)
    assert (alone.args, list(alone.kwargs)) == ((X,), ["y"])


@pytest.mark.parametrize(
    ("inputs", "kwargs", "message"),
    [
        ([Call(X)], {"y": Y}, "example_kwargs beside several calls"),
        (Call(X, method="encode"), None, "TwoTensors has no method 'encode'"),
        (Call(X, method="training"), None, "'training' of TwoTensors cannot be called"),
    ],
)
def test_calls_that_cannot_be(inputs: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        examples_of(inputs, kwargs, TwoTensors())


@pytest.mark.parametrize("inputs", [[Call(X)], Call(X, method="encode")])
def test_only_a_conversion_takes_several_calls(inputs: Any) -> None:
    with pytest.raises(InputError, match="only convert takes these"):
        Example.of(inputs)
    assert Example.of(Call(X, y=Y)).kwargs == {"y": Y}


def test_one_more_sample_of_what_has_no_rows() -> None:
    assert Example((PACKED,), {}).larger_batch() is None
    sparse = torch.eye(2).to_sparse()
    larger = Example((X, sparse), {}).larger_batch()
    assert larger is not None
    assert len(larger.args[0]) == 3
    assert larger.args[1] is sparse
    assert Example((sparse,), {}).larger_batch() is None
