"""Ranges, ranks and the search for layers that stay in fp32."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from st3fx.errors import QuantizeError
from st3fx.quantization.calibrate import find_ranges
from st3fx.quantization.check import check_outputs
from st3fx.quantization.measure import Comparison, compare, loose_outputs, opened
from st3fx.quantization.search import gains, in_fp32, least_kept
from st3fx.quantization.settings import CALIBRATIONS, Settings
from tests.passes.onnx.graphs import graph, weight
from tests.quantization.made import Made, make, outputs
from tests.quantization.test_qdq import BIASES, RESIDUAL, RESIDUAL_WEIGHTS

RELU = "a = Conv (x, w)\ny = Relu (a)"
SIGNATURE = "float[N,3,6,6] x => float[N,8,6,6] y"


def _relu(folder: Path, **settings: Any) -> Made:
    model = graph(SIGNATURE, RELU, w=weight(8, 3, 1, 1, density=1))
    return make(model, folder, 8, 3, 6, 6, batches=8, **settings)


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_ranges_are_of_all_batches(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logging.getLogger().handlers)
    made = _relu(tmp_path, calibration=method, percentile=99)
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    values = np.concatenate([feed["x"] for feed in made.feeds])
    ranges = made.ranges
    assert ranges.samples == 64
    assert ranges.lowest["y"] == 0
    low, high = ranges.lowest["x"], ranges.highest["x"]
    if method == "minmax":
        assert (low, high) == (values.min(), values.max())
    else:
        assert values.min() <= low < -2
        assert 2 < high <= values.max()
    if method == "percentile":
        bin_width = 2 * np.abs(values).max() / 2048
        wanted = np.quantile(values, [0.005, 0.995])
        np.testing.assert_allclose([low, high], wanted, atol=2 * bin_width)


def test_entropy_cuts_off_what_stands_alone(tmp_path: Path) -> None:
    made = _relu(tmp_path)
    feeds = [{"x": feed["x"].copy()} for feed in made.feeds]
    feeds[0]["x"][0, 0, 0, 0] = 40
    ranges = find_ranges(
        made.source.path, feeds, made.source.operators(), Settings(calibration="entropy")
    )
    assert 2 < ranges.highest["x"] < 20


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "the calibration data has no batch"),
        ([np.zeros((0, 3, 6, 6))], "calibration batch 0 has no sample in x"),
        ([np.zeros((2, 4, 6, 6))], "calibration batch 0 does not run: .*Got: 4 Expected: 3"),
        (
            [np.zeros((2, 3, 6, 6)), np.full((2, 3, 6, 6), np.nan)],
            "calibration batch 1 has values in x that are not finite",
        ),
        ([np.full((2, 3, 6, 6), 3e38)], "activation .* ?is not finite on (the )?calibration"),
    ],
)
@pytest.mark.parametrize("method", CALIBRATIONS)
def test_wrong_calibration_data_is_one_line(
    tmp_path: Path, feeds: list[Any], message: str, method: str
) -> None:
    made = _relu(tmp_path)
    given = [{"x": array.astype(np.float32)} for array in feeds]
    with pytest.raises(QuantizeError, match=message) as caught:
        find_ranges(made.source.path, given, made.source.operators(), Settings(calibration=method))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration": "mean"}, "calibration 'mean': give minmax or percentile or entropy"),
        ({"percentile": 3}, "percentile 3: give a number from 50 to 100"),
        ({"weight_range": "half"}, "weight range 'half': give safe or full"),
        ({"max_drop": -1}, "max drop -1: give points of accuracy"),
        ({"max_drop": float("nan")}, "max drop nan: give points of accuracy"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        Settings(**values)


def test_noise_is_measured_over_all_calls() -> None:
    y = np.array([[1.0, -2.0], [3.0, 0.0]], np.float32)
    feeds = [{"x": y}, {"x": 2 * y}]
    expected = [{"y": feed["x"], "n": np.array([1])} for feed in feeds]
    found = compare(expected, lambda feed: {"y": feed["x"] + 0.1, "n": np.array([2])}, feeds)
    signal, noise = 14 + 4 * 14, 8 * 0.01
    assert found.sqnr == {"y": pytest.approx(10 * np.log10(signal / noise), abs=1e-4)}
    same = compare(expected, lambda feed: {"y": feed["x"]}, feeds)
    assert same.worst == ("y", np.inf)
    nothing = compare([{"n": np.array([1])}], lambda feed: {"n": np.array([1])}, feeds[:1])
    assert nothing.worst == ("", None)
    check_outputs(nothing)
    with pytest.raises(
        QuantizeError, match=r"output y .* has the shape \(2, 1\), in fp32 \(2, 2\)"
    ):
        compare(expected, lambda feed: {"y": feed["x"][:, :1]}, feeds, {"z"})
    assert compare(expected, lambda feed: {"y": feed["x"][:, :1]}, feeds, {"y"}).worst == ("", None)


def test_how_many_there_are_may_differ() -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])
    shapes: dict[str, list[str | int | None]] = {"y": ["N", 3], "boxes": ["K", 4], "z": [None, 2]}
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    assert loose_outputs(helper.make_graph([], "g", [x], outputs)) == {"boxes", "z"}


@pytest.mark.parametrize(
    ("sqnr", "finite", "message"),
    [
        ({"a": 30.0, "b": 2.9}, True, "output b is far from fp32, 2.9 dB"),
        ({"a": -np.inf}, True, "output a is far from fp32"),
        ({"a": np.nan, "b": 3.0}, False, "output a of the file of integers is not finite"),
    ],
)
def test_wrong_outputs(sqnr: dict[str, float], finite: bool, message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        check_outputs(Comparison(sqnr, finite))


def test_the_layer_that_costs_most_gains_most(tmp_path: Path) -> None:
    weights = dict(RESIDUAL_WEIGHTS)
    # One weight of each channel, for an input that is always zero, leaves few steps for the others.
    weights["w1"], weights["w2"] = weights["w1"].copy(), weights["w2"].copy()
    weights["w1"][0] = 0
    weights["w2"][:, 0, 0, 0] = 40
    model = graph("float[N,3,6,6] x => float[N,8] y", RESIDUAL, **BIASES, **weights)
    made = make(model, tmp_path, 8, 3, 6, 6)
    integers = made.quantized()
    run = opened(tmp_path / "model.onnx")
    expected = [run(feed) for feed in made.feeds]
    layers = made.source.possible
    without = functools.partial(in_fp32, integers, made.source)
    found = gains(integers, without, layers, made.feeds, expected, tmp_path / "trial.onnx")
    assert set(found) == set(weights)
    assert max(found, key=lambda name: found[name]) == "w2"
    assert found["w2"] > 3
    # What was tried is what such a file gives.
    layer = next(layer for layer in layers if layer.name == "w2")
    tried, real = in_fp32(integers, made.source, layer), made.quantized(["w2"])
    close = np.abs(outputs(tried, made.feeds[0])[0] - outputs(real, made.feeds[0])[0]).max()
    assert close < 0.02 * np.abs(expected[0]["y"]).max()


@pytest.mark.parametrize("needed", range(9))
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
def test_the_least_number_of_layers(size: int, needed: int) -> None:
    order = [f"w{index}" for index in range(size)]
    tried: list[int] = []

    def score(kept: Collection[str]) -> float:
        assert list(kept) == order[: len(kept)]
        tried.append(len(kept))
        return 0.9 if len(kept) >= needed else 0.8

    found = least_kept(order, score, 0.9)
    assert len(tried) == len(set(tried)) <= 2 + 2 * np.log2(size + 1)
    if needed >= size:  # all of them would be no file of integers
        assert found is None
        return
    assert found is not None
    assert found.kept == tuple(order[:needed])
    assert (found.score, found.tried) == (0.9, len(tried))
