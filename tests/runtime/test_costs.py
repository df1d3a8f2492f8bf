"""What the cost model says of layers."""

from __future__ import annotations

import dataclasses

import pytest

from st3fx.runtime.costs import (
    ConvWork,
    Costs,
    LinearWork,
    dense_features,
    seconds,
    sparse_features,
)

POINTWISE = ConvWork(
    rows=8, columns=4, nonzeros=10, taps=1, stride=1, groups=1, in_positions=100, out_positions=100
)
WINDOW = ConvWork(
    rows=64, columns=576, nonzeros=3686, taps=9, stride=1, groups=1, in_positions=3136,
    out_positions=3136,
)  # fmt: skip
LINEAR = LinearWork(rows=5, columns=7, nonzeros=9, vectors=1)


def test_what_a_pointwise_layer_takes() -> None:
    blocked = sparse_features(POINTWISE, blocked=True)
    assert blocked == {"call": 1, "pack": 0, "multiply": 10 * 7, "row": 8 * 1}
    assert sparse_features(POINTWISE, blocked=False)["pack"] == 4 * 4 * 100
    assert dense_features(POINTWISE) == {
        "dense_pointwise": 8 * 4 * 100, "dense_store": 4 * (4 + 8) * 100
    }  # fmt: skip


def test_what_a_window_takes() -> None:
    found = sparse_features(WINDOW, blocked=True)
    # 28 tiles of two rows of 56 pixels: each reads four.
    assert found == {
        "call": 1, "pack_window": 4 * 64 * 28 * 4 * 56, "multiply": 3686 * 196, "row": 64 * 28
    }  # fmt: skip
    strided = dataclasses.replace(WINDOW, stride=2, out_positions=784)
    assert "pack_strided" in sparse_features(strided, blocked=True)
    assert dense_features(WINDOW)["dense_window"] == 64 * 576 * 3136


@pytest.mark.parametrize("vectors", [1, 15])
def test_what_a_product_takes(vectors: int) -> None:
    few = dataclasses.replace(LINEAR, vectors=vectors)
    assert sparse_features(few, blocked=False) == {"call": 1, "sparse_linear": 9 * vectors}
    assert dense_features(few) == {"dense_linear": 0, "dense_linear_weight": 35}


def test_what_a_product_of_matrices_takes() -> None:
    many = dataclasses.replace(LINEAR, vectors=16)
    assert sparse_features(many, blocked=False) == {
        "call": 1, "sparse_linear_many": 9 * 16, "sparse_linear_move": 4 * 16 * 12
    }  # fmt: skip
    assert dense_features(many)["dense_linear"] == 35 * 16


def test_seconds() -> None:
    assert seconds(Costs(call=2.0, row=0.5), {"call": 3, "row": 4}) == 8.0


def test_zeros_pay_from_some_sparsity_on() -> None:
    """The defaults: sparse wins at 90 % and loses with all weights, for the layers of a ResNet."""
    for work in (WINDOW, dataclasses.replace(WINDOW, taps=1)):
        full = dataclasses.replace(work, nonzeros=work.rows * work.columns)
        times = [seconds(Costs(), sparse_features(w, blocked=True)) for w in (work, full)]
        assert times[0] < seconds(Costs(), dense_features(work)) < times[1]
