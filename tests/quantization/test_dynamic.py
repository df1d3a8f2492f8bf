"""Files whose linear layers round their inputs call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import st3fx
from st3fx.errors import QuantizeError
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.quantization.check import check_weights
from st3fx.quantization.dynamic import dynamically
from st3fx.quantization.qdq import Source, read_source
from st3fx.quantization.quantize_result import QuantizeResult
from st3fx.runtime.costs import QuantCosts
from tests.passes.onnx.graphs import graph, weight
from tests.quantization.made import Array, constants, outputs, run_ops

BIAS = np.linspace(-1, 1, 8, dtype=np.float32)
SIGNATURE = "float[N,3,16] x => float[N,3,8] y"
LINEAR = "m = MatMul (x, w)\ny = Add (m, b)"


def _source(model: ir.Model, folder: Path) -> Source:
    ir.save(model, folder / "model.onnx")
    (folder / "work").mkdir()
    return read_source(folder / "model.onnx", folder / "work", dynamic=True)


def _reference(x: Array, w: Array, scale: Array) -> Array:
    """A product whose input is rounded to bytes over its own range, as ONNX defines it."""
    low, high = min(0, x.min()), max(0, x.max())
    step = np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / step), 0, 255)
    q = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    real: Array = (q @ w.astype(np.float64)) * (step * scale.astype(np.float64))
    return real


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_range_is_that_of_the_call(tmp_path: Path, scale: float) -> None:
    source = _source(graph(SIGNATURE, LINEAR, w=weight(16, 8), b=BIAS), tmp_path)
    model = dynamically(source, (), "safe")
    onnx.checker.check_model(model, full_check=True)
    values = constants(model)
    assert values["w_quantized"].dtype == np.int8
    assert not values["w_zero_point"].any()
    x = scale * np.random.default_rng(0).standard_normal((2, 3, 16), np.float32)
    wanted = _reference(x, values["w_quantized"], values["w_scale"]) + BIAS
    found = outputs(model, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert np.abs(found - (x @ constants(source.model)["w"] + BIAS)).max() < 0.05 * scale


def test_all_of_an_int8_is_used_where_that_is_asked_for(tmp_path: Path) -> None:
    source = _source(graph(SIGNATURE, LINEAR, w=weight(16, 8, density=1), b=BIAS), tmp_path)
    largest = {
        name: np.abs(constants(dynamically(source, (), name))["w_quantized"].astype(int)).max(0)
        for name in ("safe", "full")
    }
    assert (largest["full"] == 127).all()
    assert (largest["safe"] < 127).any()


def test_the_runtime_multiplies_integers(tmp_path: Path) -> None:
    body = "m = MatMul (x, w)\nr = Relu (m)\ny = MatMul (r, v)"
    source = _source(graph(SIGNATURE, body, w=weight(16, 8), v=weight(8, 8)), tmp_path)
    found = run_ops(dynamically(source, (), "safe"), tmp_path)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 2
    assert found["MatMul"] == 0


def test_zeros_stay_and_layers_are_left_by_name(tmp_path: Path) -> None:
    body = "m = MatMul (x, w)\nr = Relu (m)\ny = MatMul (r, v)"
    source = _source(graph(SIGNATURE, body, w=weight(16, 8), v=weight(8, 8)), tmp_path)
    model = dynamically(source, {"v"}, "safe")
    values = constants(model)
    assert "v" in values
    assert not values["w_quantized"][constants(source.model)["w"] == 0].any()
    found = check_weights(model, source, {"v"})
    assert set(found) == {"w"}
    everything = dynamically(source, {"w", "v"}, "safe")
    assert {"w", "v"} <= set(constants(everything))
    assert [node.op_type for node in everything.graph.node] == ["MatMul", "Relu", "MatMul"]


def test_a_gemm_is_a_product_and_a_sum(tmp_path: Path) -> None:
    body = "y = Gemm <transB = 1> (x, w, b)"
    model = graph("float[N,16] x => float[N,8] y", body, w=weight(8, 16), b=BIAS)
    source = _source(model, tmp_path)
    (layer,) = source.layers
    assert (layer.name, layer.op, layer.shape, layer.axis) == ("w", "MatMul", (16, 8), 1)
    x = np.random.default_rng(0).standard_normal((4, 16), np.float32)
    found = outputs(dynamically(source, (), "safe"), {"x": x})[0]
    wanted = x @ weight(8, 16).T + BIAS
    assert 0 < np.abs(found - wanted).max() < 0.05


def test_convolutions_and_scaled_products_stay_in_fp32(tmp_path: Path) -> None:
    body = """c = Conv (x, k)
              f = Flatten (c)
              g = Gemm <alpha = 0.5> (f, w)
              y = MatMul (g, v)"""
    source = _source(
        graph("float[N,3,3,3] x => float[N,8] y", body,
              k=weight(4, 3, 3, 3), w=weight(4, 8), v=weight(8, 8)),
        tmp_path,
    )  # fmt: skip
    assert {layer.name: layer.reason for layer in source.layers} == {
        "k": "the input of a Conv is not rounded call by call",
        "w": "the input of a Gemm is not rounded call by call",
        "v": "",
    }
    ir.save(graph("float[N,3,3,3] x => float[N,4,1,1] y", "y = Conv (x, k)",
                  k=weight(4, 3, 3, 3)), tmp_path / "conv.onnx")  # fmt: skip
    with pytest.raises(QuantizeError, match=r"no layer can be in integers: the input of a Conv"):
        read_source(tmp_path / "conv.onnx", tmp_path, dynamic=True)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                        nn.Linear(64, 8))  # fmt: skip
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                blocks = layer.weight.view(len(layer.weight), -1, 4)
                blocks[torch.rand(blocks.shape[:2]) < 0.8] = 0
    return net.eval()


def _quantized(net: nn.Module, path: Path, **settings: Any) -> QuantizeResult:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 16, generator=generator) for _ in range(10)]
    return st3fx.quantize(net, batches, path, calibration="dynamic", **settings)


def test_a_model_is_quantized_without_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=0.0, dense_weight=1e-6))
    result = _quantized(_net(), tmp_path / "model.onnx", sparse_kernels=True)
    assert (result.calibration, result.calibration_samples) == ("dynamic", 0)
    assert result.compared_new
    assert result.compared == 16
    assert result.sqnr is not None
    assert result.sqnr > 30
    assert all(row.gain is not None and row.integer_zeros is not None for row in result.layers)
    assert result.sparse is not None
    assert result.sparse.path is not None
    assert sum(row.is_ours for row in result.sparse.kernels.rows) == 3


def test_layers_are_chosen_as_with_a_calibration(tmp_path: Path) -> None:
    kept = _quantized(_net(), tmp_path / "a.onnx", keep_fp32=("4",))
    assert [row.reason for row in kept.layers] == ["", "", "asked for"]
    scores = iter([1.0, 0.5, 0.999, 1.0])  # fp32, all in integers, with one in fp32, the test's
    chosen = _quantized(
        _net(), tmp_path / "b.onnx", max_drop=0.2,
        evaluate=lambda _: next(scores), test=lambda _: 1.0,
    )  # fmt: skip
    assert [row.reason for row in chosen.layers].count("costs accuracy") == 1


def test_it_is_not_finetuned(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="--finetune trains with the ranges of a calibration"):
        _quantized(_net(), tmp_path / "model.onnx", finetune=1)
    assert not list(tmp_path.iterdir())


def test_a_wrong_batch_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"batch 1 has values in .* that are not finite"):
        st3fx.quantize(
            _net(), [torch.zeros(2, 16), torch.full((2, 16), torch.nan)], tmp_path / "model.onnx",
            calibration="dynamic",
        )  # fmt: skip
