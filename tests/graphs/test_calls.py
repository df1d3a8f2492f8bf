"""The structure of a call, and values that traces saw."""

from __future__ import annotations

import copy
import enum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st3fx.graphs.calls import CallSpec
from st3fx.modules.same import frozen, same_value

X, Y = torch.randn(2, 3), torch.randn(2, 5)


class Call(nn.Module):
    """A forward with one of everything."""

    def forward(
        self, x: Tensor, scale: float = 1.0, *extra: Any, mask: Tensor | None = None, **more: Any
    ) -> Any:
        return x, scale, extra, mask, more


def spec_of(*args: Any, **kwargs: Any) -> CallSpec:
    return CallSpec(Call(), args, kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((Y,), {}, [Y]),
        ((), {"x": Y}, [Y]),
        ((Y, 1.0), {}, [Y]),
        ((Y,), {"scale": 1.0, "mask": None}, [Y]),
        ((Y, 2.0), {}, None),
        ((Y, 1), {}, None),  # an int is not the float that was seen
        ((Y,), {"mask": Y}, None),
        ((Y, 1.0, Y), {}, None),
        ((Y,), {"more": 1}, None),
        ((), {}, None),
        ((3,), {}, None),
        (([Y],), {}, None),
    ],
)
def test_which_calls_match_the_plain_one(args: Any, kwargs: Any, expected: Any) -> None:
    found = spec_of(X).tensors(args, kwargs)
    assert found is None if expected is None else [id(t) for t in found or []] == [id(Y)]


def test_nested_arguments() -> None:
    a, b, c, d = (torch.zeros(1) for _ in range(4))
    spec = spec_of(a, 2.0, {"a": [b, "word"], "b": (c,)}, mask=d)
    other = [torch.zeros(1) for _ in range(4)]
    found = spec.tensors((other[0], 2.0, {"a": [other[1], "word"], "b": (other[2],)}),
                         {"mask": other[3]})  # fmt: skip
    assert found is not None
    assert [id(t) for t in found] == [id(t) for t in other]
    assert spec.tensors((a, 2.0, {"a": [b, "verb"], "b": (c,)}), {"mask": d}) is None
    assert len(set(spec.names())) == 4
    assert spec.names()[0] == "x"
    args, kwargs = spec.call(other)
    again = CallSpec(Call(), args, kwargs)
    assert again == spec


def test_equality_is_about_the_calls_that_match() -> None:
    assert spec_of(X) == spec_of(Y)
    assert spec_of(X, mask=Y) == spec_of(Y, mask=X)
    assert spec_of(X) != spec_of(X, 2.0)
    assert spec_of(X) != spec_of(X, mask=Y)
    assert spec_of(X) != "x"


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match="missing a required argument"):
        spec_of()


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 2.5, "a", b"a", 1j, torch.float32, torch.device("cpu"), range(3),
        slice(1, 2), Color.RED, (1, [2, {"a": 3}]), {1, 2}, frozenset({1}), [], {},
    ],
)  # fmt: skip
def test_the_same_value_of_another_identity(value: Any) -> None:
    assert same_value(copy.deepcopy(value), value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 2), (1, 1.0), (1, True), (True, False), ("a", "b"), ([1], (1,)), ([1], [1, 2]),
        ({"a": 1}, {"a": 2}), ({"a": 1}, {"b": 1}), ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (None, 0), (Color.RED, Color.BLUE), (torch.zeros(2), torch.zeros(2)),
        ([torch.zeros(2)], [torch.zeros(2)]), (object(), object()), (nn.ReLU(), nn.ReLU()),
    ],
)  # fmt: skip
def test_another_value(value: Any, expected: Any) -> None:
    assert not same_value(value, expected)


def test_a_frozen_container_is_a_copy_of_what_it_held() -> None:
    inner, members = [3], {4}
    value = {"a": [1, (2, inner)], "b": members}
    kept = frozen(value)
    assert same_value(value, kept)
    inner.append(5)
    assert not same_value(value, kept)
    inner.pop()
    members.add(6)
    assert not same_value(value, kept)


def test_a_frozen_tensor_is_the_tensor() -> None:
    assert frozen(X) is X


def test_packed_sequences() -> None:
    lstm, padded = nn.LSTM(2, 3), torch.randn(4, 3, 2)

    def packed(*lengths: int) -> Any:
        return nn.utils.rnn.pack_padded_sequence(padded, torch.tensor(lengths))

    spec = CallSpec(lstm, (packed(4, 2, 1),), {})
    tensors = spec.tensors((packed(3, 3, 1),), {})
    assert tensors is not None
    assert torch.equal(lstm(*spec.call(tensors)[0])[0].data, lstm(packed(3, 3, 1))[0].data)


def test_a_tensor_that_is_given_twice() -> None:
    """Code may ask whether two arguments are one."""

    class Pair(nn.Module):
        def forward(self, query: Tensor, key: Tensor, *more: Tensor) -> Tensor:
            return query if query is key else key

    x, y = torch.zeros(2), torch.zeros(2)
    twice, apart = CallSpec(Pair(), (x, x), {}), CallSpec(Pair(), (x, y), {})
    assert twice.tensors((y, y), {}) is not None
    assert twice.tensors((), {"query": y, "key": y}) is not None
    assert twice.tensors((x, y), {}) is None
    assert apart.tensors((y, x), {}) is not None
    assert apart.tensors((y, y), {}) is None
    assert twice != apart
    args, _ = twice.call(["q", "k"])
    assert args == ("q", "q")


def test_names_of_tensors_are_identifiers_and_unique() -> None:
    class Nested(nn.Module):
        def forward(self, x: object, x_a: Tensor) -> None:
            pass

    given = {"a": torch.zeros(1), "b.c": torch.zeros(1), "b-c": torch.zeros(1)}
    names = CallSpec(Nested(), (given, torch.zeros(1)), {}).names()
    assert len(set(names)) == 4
    assert all(name.isidentifier() for name in names)
