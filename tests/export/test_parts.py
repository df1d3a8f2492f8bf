"""Calls, batches, differences and silence: the parts of an export that need no exporter."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from st3fx.errors import ExportError
from st3fx.export.batch import batched, random_like, repeated
from st3fx.export.call import Call, outputs, unique
from st3fx.export.capture import is_fixed_batch, quiet, reason
from st3fx.export.parity import difference, is_constant
from st3fx.plan.example import Example
from tests.export.nets import Pair, Scores


class Many(nn.Module):
    def forward(self, x: Any, *rest: Any, flag: bool = True, **more: Any) -> Any:
        return x


T = torch.ones(2, 3)


def _call(inputs: Any, kwargs: dict[str, Any] | None = None) -> Call:
    return Call.of(Many(), Example.of(inputs, kwargs))


@pytest.mark.parametrize(
    ("inputs", "kwargs", "names", "baked"),
    [
        (T, None, ("x",), ()),
        ((T, T, T), None, ("x", "rest_0", "rest_1"), ()),
        ((T,), {"mask": T, "flag": False}, ("x", "mask"), ("flag=False",)),
        (([T, {"b": T, "a": (T, None)}],), None, ("x_0", "x_1_b", "x_1_a_0"), ()),
        ({"x": T, "x_0": 3, "y": [T]}, None, ("x", "y_0"), ("x_0=3",)),
        (([T], T), {"x_0": T}, ("x_0", "rest_0", "x_0_2"), ()),
    ],
)
def test_inputs_are_named_after_arguments(
    inputs: Any, kwargs: dict[str, Any] | None, names: tuple[str, ...], baked: tuple[str, ...]
) -> None:
    call = _call(inputs, kwargs)
    assert call.names == names
    assert call.baked == baked
    assert len(call.tensors) == len(names)


def test_other_tensors_come_to_the_same_places() -> None:
    call = _call(({"a": T, "b": [T, 5]}, T), {"flag": False, "z": T})
    new = [torch.full((4,), float(i)) for i in range(4)]
    args, kwargs = call.arguments(new)
    assert args[0]["a"] is new[0]
    assert args[0]["b"][0] is new[1]
    assert args[0]["b"][1] == 5
    assert args[1] is new[2]
    assert kwargs["z"] is new[3]
    assert kwargs["flag"] is False


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (T, ["output"]),
        ((T, T), ["output_0", "output_1"]),
        ({"out": T, "aux": [T, None, 3]}, ["out", "aux_0"]),
        (Pair(T, [T]), ["left", "right_0"]),
        ({"boxes": Scores(T, 1)}, ["boxes_scores"]),
        ([{"a": T}, {"a": T}], ["output_0_a", "output_1_a"]),
        (None, []),
    ],
)
def test_outputs_are_named_after_keys_and_fields(value: Any, names: list[str]) -> None:
    assert [name for name, _ in outputs(value)] == names


def test_an_output_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(ExportError, match="the model returns a Random as a_1: ONNX takes tensors"):
        list(outputs({"a": [T, type("Random", (), {})()]}))


def test_names_are_made_unique() -> None:
    assert unique(["a", "b", "a", "a_2", "a"]) == ("a", "b", "a_2", "a_2_2", "a_3")


def test_the_batch_is_the_most_common_first_size() -> None:
    ids, image, mask = torch.zeros(3, 7), torch.zeros(3, 1, 2), torch.zeros(7, 7)
    assert batched([ids, image, mask]) == (True, True, False)
    assert batched([torch.tensor(1.0)]) == (False,)
    assert batched([]) == ()


def test_samples_are_repeated_to_any_batch_size() -> None:
    x, mask = torch.arange(6).reshape(3, 2), torch.eye(4)
    more, same = repeated([x, mask], (True, False), 5)
    assert more.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert same is mask
    assert repeated([x], (True,), 1)[0].tolist() == [[0, 1]]


def test_random_values_lie_where_the_examples_do() -> None:
    torch.manual_seed(0)
    example = (
        torch.randn(50, 40) * 3 + 10,
        torch.randint(5, 9, (50, 7)),
        torch.tensor([[True, False]] * 50),
        torch.full((50,), 2, dtype=torch.uint8),
        torch.randn(50, 2, dtype=torch.float16),
        torch.tensor(4.0),
    )
    which = (True, True, True, True, True, False)
    drawn = random_like(example, which, 200, torch.Generator().manual_seed(1))
    again = random_like(example, which, 200, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    for given, new, has in zip(example, drawn, which, strict=True):
        assert new.dtype == given.dtype
        assert new.shape == ((200, *given.shape[1:]) if has else given.shape)
    assert drawn[0].mean() == pytest.approx(10, abs=0.2)
    assert drawn[0].std() == pytest.approx(3, abs=0.2)
    assert drawn[1].unique().tolist() == [5, 6, 7, 8]
    assert drawn[2][:, 0].all()
    assert not drawn[2][:, 1].any()
    assert drawn[3].unique().tolist() == [2]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], (0, 0)),
        ([1.0, -4.0], [1.5, -4.0], (0.5, 0.125)),
        ([0.0, 0.0], [0.0, 1e-9], (1e-9, INF)),
        ([], [], (0, 0)),
        ([NAN, 2.0], [NAN, 3.0], (1, 0.5)),
        ([NAN, 2.0], [2.0, NAN], (INF, INF)),
        ([INF, 1.0], [INF, 1.0], (0, 0)),
        ([INF, 1.0], [-INF, 1.0], (INF, INF)),
        ([1.0, 1.0], [1.0, INF], (INF, INF)),
        ([NAN], [NAN], (0, 0)),
        ([1, 1000], [1, 1001], (1, INF)),
        ([True], [False], (1, INF)),
        ([1.0], [[1.0]], (INF, INF)),
        ([1.0], [1], (INF, INF)),
    ],
)
def test_differences(wanted: Any, given: Any, expected: tuple[float, float]) -> None:
    assert difference(np.array(wanted), np.array(given)) == pytest.approx(expected)


def test_silence_is_for_this_thread_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with quiet():
        sys.stdout.write("lost\n")
        sys.stderr.write("lost\n")
        warnings.warn("lost", stacklevel=1)
        logger.error("lost")
        other = threading.Thread(target=lambda: sys.stderr.write("kept\n"))
        other.start()
        other.join()
    sys.stdout.write("kept too\n")
    assert capsys.readouterr() == ("kept too\n", "kept\n")
    assert logger.level == level


def test_the_innermost_cause_is_named() -> None:
    def raised() -> None:
        raise ValueError("the first line\nand another")

    def wrapped() -> None:
        try:
            raised()
        except ValueError as error:
            raise RuntimeError("wrapped") from error

    with pytest.raises(RuntimeError) as caught:
        wrapped()
    line = reason(caught.value)
    assert line.startswith("ValueError: the first line, at ")
    assert line.endswith('raise ValueError("the first line\\nand another")')


def test_what_a_fixed_batch_looks_like() -> None:
    message = "Found the following conflicts between user-specified ranges and inferred ranges"
    assert is_fixed_batch(RuntimeError(message))
    wrapped = RuntimeError("failed")
    wrapped.__cause__ = ValueError(message)
    assert is_fixed_batch(wrapped)
    assert not is_fixed_batch(RuntimeError("aten::histc"))


A, B = np.array([[1.0, 2.0]]), np.array([[1.0, 2.5]])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[A], [np.concatenate([A, A])]], True),
        ([[A], [A], [np.concatenate([A, B])]], False),
        ([[A, A], [A, B]], False),
        ([[A]], False),  # a single call tells nothing
        ([[np.array(3.0)], [np.array(3.0)]], True),
        ([[np.array(3.0)], [np.array(4.0)]], False),
        ([[A], [np.concatenate([A, A], axis=1)]], False),
    ],
)
def test_outputs_that_never_change(answers: Any, expected: bool) -> None:
    assert is_constant(answers) is expected
