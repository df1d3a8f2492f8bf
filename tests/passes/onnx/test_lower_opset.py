"""Operators of opset 18 in older ones: the same values, by onnx's checker and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

from st3fx.passes.onnx.lower_opset import LowerOpset, TooNewError, least_opset

GENERATOR = np.random.default_rng(0)
CONSTANTS = {
    "axes": np.array([1, -1]), "none": np.array([], np.int64), "one": np.array([1]),
    "pads": np.array([1, 0, 2, 1]), "scales": np.array([1, 1, 2, 2], np.float32),
    "shape": np.array([-1, 6]), "k": np.array(-1), "flag": np.array(True),
    "g": GENERATOR.standard_normal(4).astype(np.float32),
    "gg": GENERATOR.standard_normal((3, 4, 4)).astype(np.float32),
    "like": np.zeros(1, np.float16), "at": np.array([[[[0]]]]),
    "rw": GENERATOR.standard_normal((1, 20, 4)).astype(np.float32),
    "rr": GENERATOR.standard_normal((1, 20, 5)).astype(np.float32),
    "mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32),
    "half": np.ones(4, np.float16), "bits": np.array([1, 2, 3]),
    "b64": np.zeros(3, np.int64),
    "kernel": np.ones((2, 3, 1, 1), np.float32), "corners": np.zeros((3, 4), np.float32),
}  # fmt: skip
X = GENERATOR.standard_normal((2, 3, 4, 4)).astype(np.float32)


def model(body: str, opset: int = 18, outputs: str = "y") -> ir.Model:
    """A graph of ``x``, ``float[N,3,4,4]``, with the constants that it reads."""
    ports = ", ".join(f"float[] {name}" for name in outputs.split())
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[N,3,4,4] x) => ({ports})'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    for value in proto.graph.output:
        value.type.Clear()
    read = {name for node in proto.graph.node for name in node.input}
    for node in proto.graph.node:
        for about in node.attribute:
            read |= {name for inner in about.g.node for name in inner.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in read
    )
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return ir.from_proto(inferred)


def run(graph: ir.Model) -> list[Any]:
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    result: list[Any] = session.run(None, {"x": X})
    return result


@pytest.mark.parametrize("target", [13, 15, 17])
@pytest.mark.parametrize(
    "body",
    [
        "y = ReduceMean(x, axes)",
        "y = ReduceMax<keepdims=0, noop_with_empty_axes=0>(x, one)",
        "y = ReduceL2<keepdims=0>(x)",
        "y = ReduceProd<noop_with_empty_axes=1>(x, none)",
        "y = ReduceSum(x, axes)",
        "a, b, c = Split<axis=2, num_outputs=3>(x) y = Concat<axis=2>(c, b, a)",
        "a, b = Split<axis=-1, num_outputs=2>(x) y = Sub(a, b)",
        "y = Pad(x, pads, , axes)",
        "y = Mish(x)",
        "y = HardSwish(x)",
        "y = LayerNormalization(x, g)",
        "y = LayerNormalization<axis=1, epsilon=0.1>(x, gg, gg)",
        "y = CastLike(x, like)",
        "s = Shape<start=1, end=3>(x) y = Cast<to=1>(s)",
        "s = Shape<start=-2>(x) y = Cast<to=1>(s)",
        "s = Shape<start=0>(x) y = Cast<to=1>(s)",
        "y = Reshape<allowzero=1>(x, shape)",
        "y = Trilu(x)",
        "y = Trilu<upper=0>(x, k)",
        "b = Greater(x, x) c = Not(b) t = Trilu(c, k) y = Cast<to=1>(t)",
        "y = BatchNormalization<training_mode=0>(x, mean, mean, mean, var)",
        "z = ReduceMax<keepdims=0>(x, one) y, h, c = LSTM<hidden_size=5, layout=0>(z, rw, rr)",
        ("a = Add(x, x) b = Sub(a, x) c = PRelu(b, g) d = Where(flag, c, x) e = Identity(d)"
         " f = LeakyRelu(e) y = Pow(f, f)"),
    ],
)  # fmt: skip
def test_the_same_values(body: str, target: int) -> None:
    graph = model(body)
    (wanted,) = run(graph)
    LowerOpset(target)(graph)
    assert graph.opset_imports[""] == target
    assert [value.name for value in graph.graph.outputs] == ["y"]
    assert all(value.uses() for value in graph.graph.initializers.values())
    (given,) = run(graph)
    assert given.dtype == wanted.dtype
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "target", "reason"),
    [
        ("b = BitwiseAnd(bits, bits) y = Cast<to=1>(b)", 17, "BitwiseAnd: it is there"),
        ("y = RoiAlign(x, corners, b64)", 15,
         "RoiAlign: coordinate_transformation_mode=half_pixel is there from opset 16 on"),
        ("n = ReduceMean(x) m = Cast<to=7>(n) y = ReduceMax(x, m)", 17, "its axes are computed"),
        ("y = CenterCropPad(x, shape)", 17, "CenterCropPad: it is there from opset 18 on"),
        ("b = Cast<to=16>(x) l = LeakyRelu(b) y = Cast<to=1>(l)", 15,
         "LeakyRelu: opset 15 has it for other types than bfloat16"),
        ("y, m = LayerNormalization(x, g) z = Neg(m)", 16, "its mean or deviation is used"),
    ],
)  # fmt: skip
def test_what_has_no_older_form_is_named(body: str, target: int, reason: str) -> None:
    with pytest.raises(TooNewError, match=reason):
        LowerOpset(target)(model(body, outputs="y z" if " z =" in body else "y"))


def test_the_first_opset_that_has_a_type() -> None:
    graph = model("b = Cast<to=16>(x) w = Cast<to=16>(kernel) c = Conv(b, w) y = Cast<to=1>(c)")
    assert least_opset(graph) == (22, "Conv of bfloat16")
    assert least_opset(model("y = Relu(x)")) == (18, "")


@pytest.mark.parametrize("target", [13, 17])
def test_names_in_branches_are_those_of_no_other_value(target: int) -> None:
    """Each graph names its own values: what is new in a branch must not have an outer name."""
    parts = "q0, q1 = Split<axis=2, num_outputs=2>(x) q = Concat<axis=2>(q1, q0)"
    body = f"""a = Mish(x) b = LayerNormalization(a, g)
        y = If(flag) <then_branch = g1 () => (float[N,3,4,4] p) {{
                r = Mish(b) s = LayerNormalization(r, g) p = Trilu(s) }},
            else_branch = g2 () => (float[N,3,4,4] q) {{ {parts} }}>"""
    graph = model(body)
    (wanted,) = run(graph)
    LowerOpset(target)(graph)
    values = [v.name for n in ir.traversal.RecursiveGraphIterator(graph.graph) for v in n.outputs]
    assert len(values) == len(set(values))
    (given,) = run(graph)
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
