"""Linear layers become a product and a sum, and the file computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from st3fx.passes.onnx.split_gemm import SplitGemm
from tests.passes.onnx.graphs import graph, ops, run, weight

X = np.random.default_rng(1).standard_normal((3, 4), np.float32)
BIAS = np.linspace(-1, 1, 5, dtype=np.float32)


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("y = Gemm (x, v, b)", {"MatMul": 1, "Add": 1}),
        ("y = Gemm <transB = 1> (x, w, b)", {"Transpose": 1, "MatMul": 1, "Add": 1}),
        ("y = Gemm <transB = 1, alpha = 1.0, beta = 1.0> (x, w)", {"Transpose": 1, "MatMul": 1}),
        ("z = Gemm (x, v, b)\ny = Relu (z)", {"MatMul": 1, "Add": 1, "Relu": 1}),
    ],
)
def test_a_linear_layer_is_a_product_and_a_sum(body: str, made: dict[str, int]) -> None:
    model = graph("float[3,4] x => float[3,5] y", body, w=weight(5, 4), v=weight(4, 5), b=BIAS)
    before = run(model, X)
    done = SplitGemm()
    assert done(model).modified
    assert len(done.changed) == 1
    assert dict(ops(model)) == made
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model, X)[0], before[0], rtol=1e-6)
    assert not SplitGemm()(model).modified


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm <alpha = 0.5> (x, v, b)",
        "y = Gemm <beta = 0.5> (x, v, b)",
        "t = Transpose (x)\ny = Gemm <transA = 1> (t, v, b)",
        "y = MatMul (x, v)",
    ],
)
def test_what_is_more_than_a_linear_layer_stays(body: str) -> None:
    model = graph("float[3,4] x => float[3,5] y", body, v=weight(4, 5), b=BIAS)
    before = ops(model)
    assert not SplitGemm()(model).modified
    assert ops(model) == before
