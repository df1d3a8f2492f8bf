"""Transposed weights become constants, and the file computes what it did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from st3fx.passes.onnx.transpose_weights import TransposeWeights
from tests.passes.onnx.graphs import graph, ops, run, weight

X = np.random.default_rng(1).standard_normal((2, 3, 4), np.float32)

PAIR = """t = Transpose (w)
          u = Transpose (w)
          a = MatMul (x, t)
          b = MatMul (x, u)
          y = Add (a, b)"""
LOOKUP = """t = Transpose (w)
            a = MatMul (x, t)
            b = Gather (w, i)
            y = Add (a, b)"""
PLAIN_LOOKUP = """a = MatMul (x, w)
                  b = Gather (w, i)
                  y = Add (a, b)"""
OTHER_READER = """t = Transpose (w)
                  a = MatMul (x, t)
                  b = MatMul (t, t)
                  c = Gather (b, i)
                  y = Add (a, c)"""


@pytest.mark.parametrize(
    ("body", "made"),
    [
        ("t = Transpose <perm = [1, 0]> (w)\ny = MatMul (x, t)", {"w": "w"}),
        ("t = Transpose (w)\ny = MatMul (x, t)", {"w": "w"}),
        (PAIR, {"w": "w"}),
        (LOOKUP, {"w.product": "w"}),
        (PLAIN_LOOKUP, {"w.product": "w"}),
    ],
)
def test_products_get_constants(body: str, made: dict[str, str]) -> None:
    model = graph("float[2,3,4] x => float[2,3,4] y", body, w=weight(4, 4), i=np.array([1, 0, 3]))
    before = run(model, X)
    done = TransposeWeights().applied_to(model)
    assert done.names == made
    assert ops(model)["Transpose"] == 0
    assert set(made) <= set(model.graph.initializers)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model, X)[0], before[0], rtol=1e-6)
    assert not TransposeWeights()(model).modified


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, w)",
        "t = Transpose <perm = [0, 1]> (w)\ny = MatMul (x, t)",
        OTHER_READER,
        "t = Transpose <perm = [0, 2, 1]> (x)\nu = MatMul (x, t)\ny = MatMul(u, x)",
    ],
)
def test_what_is_no_transposed_weight_stays(body: str) -> None:
    model = graph("float[2,3,4] x => float[2,3,4] y", body, w=weight(4, 4), i=np.array([1, 0, 3]))
    before = ops(model)
    assert not TransposeWeights()(model).modified
    assert ops(model) == before
