from __future__ import annotations

import pytest
import torch

from st3fx.errors import SpecError
from st3fx.loading.input_spec import DTYPES, parse_input, parse_inputs


def test_default_is_float32_and_repeatable() -> None:
    value = parse_input("1x3x4x5")
    assert (value.shape, value.dtype) == ((1, 3, 4, 5), torch.float32)
    assert torch.equal(value, parse_input("1x3x4x5"))
    assert value.std() > 0.5


@pytest.mark.parametrize("name", list(DTYPES))
def test_every_dtype(name: str) -> None:
    value = parse_input(f"64:{name}")
    assert value.dtype == DTYPES[name] == parse_input(f"64:torch.{name}").dtype
    if not value.dtype.is_floating_point and not value.dtype.is_complex:
        assert value.to(torch.int64).unique().tolist() == [0, 1]


def test_inputs_of_the_same_shape_differ() -> None:
    first, second = parse_inputs(["2x8", "2x8"], seed=3)
    assert not torch.equal(first, second)
    assert torch.equal(first, parse_inputs(["2x8"], seed=3)[0])
    assert not torch.equal(first, parse_inputs(["2x8"], seed=4)[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give sizes joined by x"),
        ("1,3,224", "give sizes joined by x"),
        ("1x-3", "give sizes joined by x"),
        ("2x3:", "unknown dtype ''"),
        ("2x3:int46", "unknown dtype 'int46'; did you mean .*int64"),
        ("2x3:zzz", "unknown dtype 'zzz'; there are float32, float64"),
        ("2x0", "a size is 0"),
        ("99999999x99999999", "do not fit into memory"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_input(text)
