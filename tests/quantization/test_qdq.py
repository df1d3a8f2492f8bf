"""Files of integers: what they compute, which zeros they have, and what stays in fp32."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest

from st3fx.errors import QuantizeError
from st3fx.quantization.check import check_weights
from st3fx.quantization.qdq import weight_scales
from tests.passes.onnx.graphs import graph, weight
from tests.quantization.made import Array, constants, make, outputs, run_ops

CONV = "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
SIGNATURE = "float[N,3,6,6] x => float[N,8,6,6] y"
BIAS = np.linspace(-1, 1, 8, dtype=np.float32)

RESIDUAL = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2)
    f = Add (e, r)
    g = Relu (f)
    h = Conv <pads = [1, 1, 1, 1]> (g, w3, b3)
    i = Add (h, g)
    j = Relu (i)
    p = MaxPool <kernel_shape = [6, 6]> (j)
    q = Flatten (p)
    y = Gemm <transB = 1> (q, w4, b4)
"""
RESIDUAL_WEIGHTS = {
    "w0": weight(8, 3, 3, 3, density=0.5), "w1": weight(8, 8, 3, 3, seed=1),
    "w2": weight(8, 8, 3, 3, seed=2), "w3": weight(8, 8, 3, 3, seed=3),
    "w4": weight(8, 8, density=0.6, seed=4),
}  # fmt: skip
BIASES = {f"b{index}": np.roll(BIAS, index) for index in range(5)}


def _reference(model: onnx.ModelProto, x: Array) -> Array:
    """What the integers of one padded 3×3 convolution give, as ONNX defines it."""
    values = constants(model)
    scale, zero = values["x_scale"], values["x_zero_point"].astype(np.int64)
    q = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - zero
    w = values["w_quantized"].astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    sums = np.einsum("ncijkl,ockl->noij", windows, w)
    channels = (slice(None), None, None)
    sums += values["b_quantized"].astype(np.int64)[channels]
    real = sums * (scale.astype(np.float64) * values["w_scale"].astype(np.float64))[channels]
    out, zero = values["y_scale"].astype(np.float64), values["y_zero_point"].astype(np.int64)
    steps: Array = np.clip(np.rint(real / out) + zero, 0, 255) - zero
    return steps * out


@pytest.mark.parametrize("weight_range", ["safe", "full"])
def test_a_convolution_is_that_of_integers_within_one_step(
    tmp_path: Path, weight_range: str
) -> None:
    made = make(graph(SIGNATURE, CONV, w=weight(8, 3, 3, 3), b=BIAS), tmp_path, 2, 3, 6, 6)
    model = made.quantized(weight_range=weight_range)
    step = float(constants(model)["y_scale"])
    for feed in made.feeds:
        wanted = _reference(model, feed["x"])
        assert np.ptp(wanted) > 100 * step
        optimized = weight_range == "safe"  # x86 without VNNI overflows else
        found = outputs(model, feed, optimized=optimized)[0]
        assert np.abs(found - wanted).max() <= 1.001 * step
    assert constants(model)["w_quantized"].dtype == np.int8
    assert constants(model)["x_zero_point"].dtype == np.uint8


def test_zeros_stay_and_what_is_rounded_to_zero_is_counted(tmp_path: Path) -> None:
    w = weight(8, 3, 3, 3)
    w[0, 0, 0] = [1e-4, -1e-4, 5.0]
    made = make(graph(SIGNATURE, CONV, w=w, b=BIAS), tmp_path, 2, 3, 6, 6)
    model = made.quantized()
    rounding = check_weights(model, made.source, ())["w"]
    integers = constants(model)["w_quantized"]
    assert not integers[w == 0].any()
    assert rounding.zeros == (integers == 0).sum()
    assert rounding.rounded == ((integers == 0) & (w != 0)).sum() >= 2


def test_a_lost_zero_and_a_layer_that_was_left_out_are_errors(tmp_path: Path) -> None:
    made = make(graph(SIGNATURE, CONV, w=weight(8, 3, 3, 3), b=BIAS), tmp_path, 2, 3, 6, 6)
    with pytest.raises(QuantizeError, match=r"w \(8, 3, 3, 3\) is not in integers"):
        check_weights(made.quantized(["w"]), made.source, ())
    model = made.quantized()
    (item,) = (item for item in model.graph.initializer if item.name == "w_quantized")
    item.raw_data = bytes(np.maximum(np.frombuffer(item.raw_data, np.int8), 1))
    with pytest.raises(QuantizeError, match=r"w \(8, 3, 3, 3\) has lost \d+ of its \d+ zeros"):
        check_weights(model, made.source, ())


def test_a_dead_channel_gives_its_bias(tmp_path: Path) -> None:
    w = weight(8, 3, 3, 3)
    w[2] = 0
    w[5] = 0
    w[5, 0, 0, 0] = 1e-42  # a scale would be denormal
    made = make(graph(SIGNATURE, CONV, w=w, b=BIAS), tmp_path, 2, 3, 6, 6)
    model = made.quantized()
    values = constants(model)
    found = outputs(model, made.feeds[0])[0]
    half = float(values["y_scale"]) / 2
    for channel in (2, 5):
        bias = values["b_quantized"][channel] * values["x_scale"] * values["w_scale"][channel]
        assert bias == pytest.approx(BIAS[channel], abs=1e-3)
        assert np.abs(found[:, channel] - BIAS[channel]).max() <= half + 1e-3
    check_weights(model, made.source, ())


def test_an_empty_layer_gives_its_biases(tmp_path: Path) -> None:
    made = make(graph(SIGNATURE, CONV, w=0 * weight(8, 3, 3, 3), b=BIAS), tmp_path, 2, 3, 6, 6)
    model = made.quantized()
    found = outputs(model, made.feeds[0])[0]
    step = float(constants(model)["y_scale"])
    assert np.abs(found - BIAS[:, None, None]).max() <= step


def test_a_bias_that_is_large_beside_its_weights_does_not_overflow(tmp_path: Path) -> None:
    w = weight(8, 3, 3, 3)
    w[3] *= 1e-9
    made = make(graph(SIGNATURE, CONV, w=w, b=BIAS + 1), tmp_path, 2, 3, 6, 6)
    model = made.quantized()
    values = constants(model)
    real = values["b_quantized"] * values["x_scale"].astype(np.float64) * values["w_scale"]
    np.testing.assert_allclose(real, BIAS + 1, atol=1e-3)
    check_weights(model, made.source, ())


def test_everything_of_a_residual_network_runs_in_integers(tmp_path: Path) -> None:
    model = graph("float[N,3,6,6] x => float[N,8] y", RESIDUAL, **BIASES, **RESIDUAL_WEIGHTS)
    made = make(model, tmp_path, 2, 3, 6, 6)
    found = run_ops(made.quantized(), tmp_path)
    assert found["QLinearConv"] == 4
    assert found["QLinearAdd"] == 2
    assert found["QGemm"] == 1
    assert not {"Conv", "Add", "Gemm", "Relu"} & set(found)
    # The input alone is made integers; QGemm gives fp32.
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] == 0


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_and_depthwise_convolutions(tmp_path: Path, groups: int) -> None:
    body = f"y = Conv <group = {groups}, pads = [1, 1, 1, 1]> (x, w, b)"
    w = weight(8, 8 // groups, 3, 3, density=0.7)
    made = make(graph("float[N,8,6,6] x => float[N,8,6,6] y", body, w=w, b=BIAS), tmp_path,
                2, 8, 6, 6)  # fmt: skip
    model = made.quantized()
    assert constants(model)["w_scale"].shape == (8,)
    wanted = outputs(model, made.feeds[0], optimized=False)[0]
    assert np.abs(outputs(model, made.feeds[0])[0] - wanted).max() <= 1.001 * float(
        constants(model)["y_scale"]
    )
    assert run_ops(model, tmp_path)["QLinearConv"] == 1


def test_a_transposed_weight_of_a_product_has_a_scale_for_each_output(tmp_path: Path) -> None:
    body = "t = Transpose (w)\na = MatMul (x, t)\ny = Add (a, b)"
    w = weight(8, 6, density=0.5) * np.geomspace(0.01, 10, 8, dtype=np.float32)[:, None]
    made = make(graph("float[N,5,6] x => float[N,5,8] y", body, w=w, b=BIAS), tmp_path, 2, 5, 6)
    (layer,) = made.source.layers
    assert (layer.name, layer.op, layer.shape, layer.axis) == ("w", "MatMul", (6, 8), 1)
    model = made.quantized()
    integers = constants(model)["w_quantized"]
    assert (np.abs(integers).max(axis=0) > 60).all()
    assert not integers[w.T == 0].any()
    assert run_ops(model, tmp_path)["MatMulIntegerToFloat"] == 1
    wanted = made.feeds[0]["x"] @ w.T + BIAS
    found = outputs(model, made.feeds[0])[0]
    assert (np.abs(found - wanted).max((0, 1)) < 0.03 * np.abs(wanted).max((0, 1))).all()


def test_two_layers_of_one_weight(tmp_path: Path) -> None:
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b)\ny = Conv <pads = [1, 1, 1, 1]> (a, w, b)"
    made = make(graph("float[N,8,6,6] x => float[N,8,6,6] y", body, w=weight(8, 8, 3, 3), b=BIAS),
                tmp_path, 2, 8, 6, 6)  # fmt: skip
    (layer,) = made.source.layers
    assert len(layer.nodes) == 2
    model = made.quantized()
    assert run_ops(model, tmp_path)["QLinearConv"] == 2
    check_weights(model, made.source, ())


@pytest.mark.parametrize("kept", ["w0", "w1", "w2", "w3", "w4"])
def test_what_is_kept_in_fp32_is_computed_in_fp32(tmp_path: Path, kept: str) -> None:
    weights = dict(RESIDUAL_WEIGHTS)
    # One scale for all of it would lose most channels: what ONNX Runtime does to a weight in fp32
    # between integers.
    factors = np.geomspace(1e-3, 1, 8, dtype=np.float32)
    weights[kept] = weights[kept] * factors.reshape(8, *[1] * (weights[kept].ndim - 1))
    model = graph("float[N,3,6,6] x => float[N,8] y", RESIDUAL, **BIASES, **weights)
    made = make(model, tmp_path, 2, 3, 6, 6)
    file = made.quantized([kept])
    assert constants(file)[kept].dtype == np.float32
    found = run_ops(file, tmp_path)
    assert found["QLinearConv"] + found["QGemm"] == 4
    assert found["Conv"] + found["FusedConv"] + found["Gemm"] == 1
    fast, plain = (outputs(file, made.feeds[0], optimized=on)[0] for on in (True, False))
    assert np.abs(fast - plain).max() < 0.03 * np.abs(plain).max()
    check_weights(file, made.source, [kept])


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        ("y = ConvTranspose (x, w)", (3, 8, 1, 1), "ConvTranspose has no kernel for integers"),
        ("z = Conv (x, v)\ny = Mul (z, w)", (1, 8, 6, 6), "Mul has no kernel for integers"),
    ],
)
def test_reasons(tmp_path: Path, body: str, shape: tuple[int, ...], reason: str) -> None:
    more = "" if "(x, v)" in body else "\nu = Conv (x, v)\ny = Add (y0, u)"
    body = body.replace("y = ConvTranspose", "y0 = ConvTranspose") + more
    model = graph(SIGNATURE, body, w=weight(*shape, density=1), v=weight(8, 3, 1, 1, density=1))
    made = make(model, tmp_path, 2, 3, 6, 6)
    reasons = {layer.name: layer.reason for layer in made.source.layers}
    assert reasons == {"v": "", "w": reason}
    assert constants(made.quantized())["w"].dtype == np.float32


def test_a_file_without_a_product_is_an_error(tmp_path: Path) -> None:
    model = graph("float[N,4] x => float[N,4] y", "y = Mul (x, w)", w=weight(1, 4, density=1))
    with pytest.raises(QuantizeError, match="no layer can be in integers: Mul has no kernel"):
        make(model, tmp_path, 2, 4)


@pytest.mark.parametrize("axis", [0, 1])
def test_no_pair_of_safe_weights_overflows(axis: int) -> None:
    w = np.random.default_rng(0).standard_t(3, (16, 7, 3, 3)).astype(np.float32)
    w[3] = np.abs(w[3]).max()  # the worst: all neighbours are the largest
    w = np.moveaxis(w, 0, axis) if axis else w
    scales = weight_scales(w, axis, "safe")
    rows = np.moveaxis(w, axis, 0)
    integers = np.rint(rows / scales[:, None, None, None]).astype(np.int64)
    # ONNX Runtime's order: taps outside, input channels inside.
    flat = np.moveaxis(integers, 1, -1).reshape(16, -1)
    for signs, pair in itertools.product(((1, 1), (1, 0), (0, 1)), range(0, flat.shape[1] - 1, 2)):
        sums = 255 * (signs[0] * flat[:, pair] + signs[1] * flat[:, pair + 1])
        assert np.abs(sums).max() <= 2**15 - 1
    full = weight_scales(w, axis, "full")
    assert (scales >= full).all()
    assert scales[3] == pytest.approx(2 * full[3])
    assert np.median(scales / full) < 1.7


def test_safe_weights_give_the_same_with_and_without_fast_kernels(tmp_path: Path) -> None:
    w = np.abs(weight(32, 32, 3, 3, density=0.9))  # sums of products of one sign
    body = "r = Relu (x)\ny = Conv <pads = [1, 1, 1, 1]> (r, w)"
    made = make(graph("float[N,32,6,6] x => float[N,32,6,6] y", body, w=w), tmp_path, 2, 32, 6, 6)
    model = made.quantized()
    fast, plain = (outputs(model, made.feeds[0], optimized=on)[0] for on in (True, False))
    assert np.abs(fast - plain).max() <= 1.001 * float(constants(model)["y_scale"])
