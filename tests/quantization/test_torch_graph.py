"""Files as torch's graphs: each operator computes what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from st3fx.errors import QuantizeError
from st3fx.quantization import torch_ops
from st3fx.quantization.torch_graph import to_torch
from tests.passes.onnx.graphs import graph
from tests.quantization.made import Array, outputs

GENERATOR = np.random.default_rng(0)
W = GENERATOR.standard_normal((4, 3, 3, 3)).astype(np.float32)
W1 = GENERATOR.standard_normal((4, 3, 3)).astype(np.float32)
HALF = GENERATOR.standard_normal((4, 2, 3, 3)).astype(np.float32)
B = np.array([0.5, -1, 2, 0.1], np.float32)
C3, POSITIVE = np.array([0.7, -2, 1.5], np.float32), np.array([0.7, 2, 1.5], np.float32)
M = GENERATOR.standard_normal((5, 4)).astype(np.float32)
IMAGE, ROWS = "float[2,3,6,6] x", "float[2,4,5] x"


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CASES: dict[str, tuple[str, str, dict[str, Array]]] = {
    "Conv": (IMAGE, "y = Conv <pads = [1, 0, 2, 1], strides = [2, 1]> (x, w, b)",
             {"w": W, "b": B}),
    "Conv of one dimension": ("float[2,3,9] x", "y = Conv <dilations = [2], pads = [1, 1]> (x, w)",
                              {"w": W1}),
    "Conv in groups": ("float[2,4,6,6] x", "y = Conv <group = 2> (x, w, b)", {"w": HALF, "b": B}),
    "ConvTranspose": ("float[2,4,5,5] x",
                      ("y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1],"
                      " output_padding = [1, 1]> (x, w)"), {"w": W}),
    "Gemm": ("float[4,5] x", "y = Gemm <alpha = 0.5, beta = 2.0, transA = 1, transB = 1> (x, m, b)",
             {"m": M, "b": GENERATOR.standard_normal(5).astype(np.float32)}),
    "MatMul": (ROWS, "y = MatMul (x, m)", {"m": M}),
    "arithmetic": (IMAGE, """
        a = Abs (x)
        s = Sqrt (a)
        e = Exp (x)
        l = Log (e)
        d = Div (s, e)
        p = Pow (a, h)
        q = Sub (d, p)
        r = Reciprocal (e)
        t = Max (q, r, l)
        u = Min (t, a)
        v = Mul (u, h)
        y = Neg (v)
     """, {"h": np.array(1.5, np.float32)}),
    "activations": (IMAGE, """
        a = LeakyRelu <alpha = 0.2> (x)
        b = HardSigmoid <alpha = 0.17> (a)
        c = HardSwish (x)
        d = Gelu <approximate = "tanh"> (c)
        e = Clip (d, low, high)
        f = PRelu (x, slope)
        g = Elu <alpha = 0.7> (f)
        h = Softplus (g)
        i = Mish (h)
        j = Tanh (i)
        k = Add (b, e)
        y = Add (j, k)
     """, {"low": np.array(-0.3, np.float32),
         "high": np.array(1.2, np.float32), "slope": np.full((3, 1, 1), 0.3, np.float32)}),
    "Softmax": (ROWS, "a = Softmax <axis = 1> (x)\nb = LogSoftmax (x)\ny = Add (a, b)", {}),
    "LayerNormalization": (ROWS, "y = LayerNormalization <epsilon = 0.01> (x, s, b)",
                           {"s": np.arange(5, dtype=np.float32), "b": np.ones(5, np.float32)}),
    "BatchNormalization": (IMAGE, "y = BatchNormalization <epsilon = 0.01> (x, s, b, m, v)",
                           {"s": C3, "b": POSITIVE, "m": C3, "v": POSITIVE}),
    "InstanceNormalization": (IMAGE, "y = InstanceNormalization (x, s, b)",
                              {"s": C3, "b": POSITIVE}),
    "MaxPool": (IMAGE, ("y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 0],"
                " ceil_mode = 1> (x)"), {}),
    "MaxPool on one side": (IMAGE, "y = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (x)",
                            {}),
    "AveragePool": (IMAGE, ("y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], "
                    "pads = [1, 1, 1, 1]> (x)"), {}),
    "AveragePool over its padding": (IMAGE, ("y = AveragePool <kernel_shape = [3, 3], "
                                     "pads = [1, 1, 1, 1], count_include_pad = 1> (x)"), {}),
    "global pools": (IMAGE, "a = GlobalAveragePool (x)\nb = GlobalMaxPool (x)\ny = Add (a, b)", {}),
    "Resize to the nearest": (IMAGE, ('y = Resize <mode = "nearest", nearest_mode = "floor", '
                              'coordinate_transformation_mode = "asymmetric"> (x, , , s)'),
                              {"s": ints(2, 3, 13, 4)}),
    "Resize in between": (IMAGE, 'y = Resize <mode = "linear"> (x, , f)',
                          {"f": np.array([1, 1, 2, 3], np.float32)}),
    "shapes": (IMAGE, """
        s = Shape (x)
        n = Gather (s, zero)
        u = Unsqueeze (n, first)
        t = Concat <axis = 0> (u, rest)
        a = Reshape (x, t)
        b = Transpose <perm = [0, 2, 1]> (a)
        c = Slice (b, begin, end, dims, steps)
        d = Flatten <axis = 1> (c)
        y = Squeeze (d)
     """, {"zero": np.array(0), "first": ints(0), "rest": ints(3, -1), "begin": ints(1, 2),
         "end": ints(30, 2**60), "dims": ints(1, 2), "steps": ints(3, 1)}),
    "backwards": (IMAGE, "y = Slice (x, b, e, d, s)",
                  {"b": ints(-1), "e": ints(-(2**60)), "d": ints(3), "s": ints(-2)}),
    "Split": (IMAGE, ("a, b = Split <axis = 2> (x, sizes)\nc, d = Split <axis = 1, num_outputs = 2>"
              " (b)\ny = Concat <axis = 1> (d, b, c)"), {"sizes": ints(1, 5)}),
    "Gather": (ROWS, "a = Gather <axis = 1> (x, i)\ny = GatherElements <axis = 2> (a, e)",
               {"i": ints(-1, 0, 2), "e": np.zeros((2, 3, 2), np.int64) - 1}),
    "ScatterND": (ROWS, "a = ScatterND (x, i, u)\ny = GatherND (a, i)",
                  {"i": np.array([[0, 1], [1, 2]]), "u": np.ones((2, 5), np.float32)}),
    "Pad": (IMAGE, 'a = Pad (x, p, v)\ny = Pad <mode = "reflect"> (a, q)',
            {"p": ints(0, 1, 0, 2, 0, 0, 1, -1), "v": np.array(2.5, np.float32),
             "q": ints(0, 0, 1, 2, 0, 0, 3, 1)}),
    "numbers": (ROWS, """
        s = Shape <start = 1> (x)
        n = Squeeze (e)
        r = Range (zero, n, one)
        f = Cast <to = 1> (r)
        c = Less (f, x)
        d = Greater (x, f)
        k = And (c, d)
        m = Not (k)
        z = ConstantOfShape <value = float[1] {1.5}> (s)
        w = Expand (z, three)
        t = Tile (w, three)
        y = Where (m, x, f)
     """, {"e": ints(5), "zero": np.array(0), "one": np.array(1), "three": ints(2, 1, 1)}),
    "reductions": (ROWS, """
        a = ReduceMean <keepdims = 0> (x, last)
        b = ReduceSum <keepdims = 0> (x, last)
        c = ReduceMax <keepdims = 0> (x, last)
        d = ReduceL2 <keepdims = 0> (x, last)
        e = Concat <axis = 1> (a, b, c, d)
        y = ReduceMin (e)
     """, {"last": ints(-1)}),
    "integers": (IMAGE, """
        q = QuantizeLinear <axis = 1> (x, s, z)
        y = DequantizeLinear <axis = 1> (q, s, z)
     """, {"s": np.array([0.01, 0.02, 0.5], np.float32), "z": np.array([3, 128, 255], np.uint8)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnx_runtime_computes(name: str) -> None:
    inputs, body, constants = CASES[name]
    model = ir.to_proto(graph(f"{inputs} => y", body, **constants))
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    (wanted,) = outputs(model, {"x": x}, optimized=False)
    made = to_torch(model)
    found = made.module(torch.from_numpy(x))["y"].numpy()
    assert found.shape == wanted.shape
    assert np.isfinite(wanted).all()
    assert np.abs(found - wanted).max() <= 2e-6 * max(1, np.abs(wanted).max())
    assert wanted.size


def test_every_operator_but_a_few_was_tried() -> None:
    bodies = " ".join(body for _, body, _ in CASES.values())
    untried = {op for op in torch_ops.OPERATORS if f"= {op} " not in bodies}
    assert untried == {
        "Ceil", "Cos", "DepthToSpace", "Equal", "Erf", "Floor", "GreaterOrEqual",
        "GroupNormalization", "Identity", "IsNaN", "LessOrEqual", "Or", "RMSNormalization", "Relu",
        "Sigmoid", "Sin",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("y = Hardmax (x)", r"cannot train through y, Hardmax\(\): leave --finetune out"),
        ('y = Conv <unheard = 3> (x, w)', r"Conv\(unheard = 3\)"),
    ],
)  # fmt: skip
def test_what_torch_does_not_compute_is_refused_by_name(body: str, complaint: str) -> None:
    with pytest.raises(QuantizeError, match=complaint):
        to_torch(_unchecked(body))


def _unchecked(body: str) -> onnx.ModelProto:

    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"test (float[2,3,6,6] x, float[4,3,3,3] w) => (float y) {{\n{body}\n}}"
    )
