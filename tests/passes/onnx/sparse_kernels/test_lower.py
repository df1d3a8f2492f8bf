"""Each pattern of the table: what it becomes, and that it computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.onnx import graphs
from tests.passes.onnx.graphs import Array, graph, lowered, ops, weight

IMAGE = "float[N,6,9,10] x => float[N,8,H,W] y"
LIMITS = {"low": np.array(-0.5, np.float32), "high": np.array(0.75, np.float32)}
CONV = {"w": weight(8, 6, 3, 3), "b": weight(8, density=1)}


def images(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("name", "body", "activation"),
    [
        ("none", "y = Conv<pads=[1,1,1,1]>(x, w, b)", ""),
        ("no bias", "y = Conv<strides=[2,1], dilations=[1,2]>(x, w)", ""),
        ("relu", "a = Conv(x, w, b)\ny = Relu(a)", "relu"),
        ("relu6", "a = Conv(x, w, b)\ny = Clip(a, low, high)", "clip"),
        ("silu", "a = Conv(x, w, b)\ns = Sigmoid(a)\ny = Mul(a, s)", "silu"),
        ("silu, turned", "a = Conv(x, w, b)\ns = Sigmoid(a)\ny = Mul(s, a)", "silu"),
        ("hard swish", "a = Conv(x, w, b)\ny = HardSwish(a)", "hard_swish"),
        (
            "hard swish of two nodes",
            "a = Conv(x, w, b)\ns = HardSigmoid<alpha=0.1666666716>(a)\ny = Mul(a, s)",
            "hard_swish",
        ),
    ],
)
def test_a_convolution_with_its_activation(name: str, body: str, activation: str) -> None:
    plain = graph(IMAGE, body, **CONV, **LIMITS)
    sparse, report = lowered(plain)
    assert ops(sparse) == {"st3fx.SparseConv": 1}, name
    about = graphs.node(sparse, "SparseConv").attributes
    assert about.get_string("activation", "") == activation
    if activation == "clip":
        assert (about.get_float("minimum"), about.get_float("maximum")) == (-0.5, 0.75)
    assert set(sparse.graph.initializers) == {
        "w.values", "w.columns", "w.row_starts", *(["b"] if ", b" in body else [])
    }  # fmt: skip
    assert (report.rows[0].name, report.rows[0].is_sparse, report.operators) == (
        "w", True, {"SparseConv": 1}
    )  # fmt: skip
    graphs.assert_same(plain, sparse, images(3, 6, 9, 10))


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w, b)\ns = HardSigmoid<alpha=0.2>(a)\ny = Mul(a, s)",  # another slope
        "a = Conv(x, w, b)\ns = Sigmoid(a)\nt = Mul(a, s)\ny = Add(t, s)",  # the gate is read too
        "a = Conv(x, w, b)\ny = Clip(a, low)",  # no upper limit
        "a = Conv(x, w, b)\nr = Relu(a)\ny = Add(a, r)",  # read before the activation
    ],
)
def test_what_looks_like_an_activation_and_is_none(body: str) -> None:
    plain = graph(IMAGE, body, **CONV, **LIMITS)
    sparse, _ = lowered(plain)
    assert "activation" not in graphs.node(sparse, "SparseConv").attributes
    graphs.assert_same(plain, sparse, images(2, 6, 9, 10))


def test_a_sum_goes_to_the_last_convolution_before_it() -> None:
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w, b)
        c = Conv(x, v)
        s = Add(a, c)
        y = Relu(s)
    """
    plain = graph(IMAGE, body, **CONV, v=weight(8, 6, 1, 1, seed=2))
    sparse, _ = lowered(plain)
    assert ops(sparse) == {"st3fx.SparseConv": 2}
    last = list(sparse.graph)[-1]
    assert last.inputs[1] is not None
    assert last.inputs[1].name == "v.values"
    assert last.inputs[4] is None  # no bias
    assert last.inputs[5] is next(iter(sparse.graph)).outputs[0]
    assert last.attributes.get_string("activation") == "relu"
    graphs.assert_same(plain, sparse, images(2, 6, 9, 10))


def test_a_sum_of_different_shapes_stays() -> None:
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b)\ny = Add(a, z)"
    plain = graph("float[N,6,9,10] x, float[N,8,1,1] z => float[N,8,H,W] y", body, **CONV)
    sparse, _ = lowered(plain)
    assert ops(sparse) == {"st3fx.SparseConv": 1, "Add": 1}
    graphs.assert_same(plain, sparse, images(2, 6, 9, 10), images(2, 8, 1, 1))


def test_groups_and_depthwise() -> None:
    body = """
        a = Conv<group=2, pads=[1,1,1,1]>(x, w)
        d = Conv<group=8, kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a, v, b)
        y = Relu(d)
    """
    plain = graph(IMAGE, body, w=weight(8, 3, 3, 3), v=weight(8, 1, 3, 3, density=1), b=CONV["b"])
    sparse, report = lowered(plain)
    assert ops(sparse) == {"st3fx.SparseConv": 1, "st3fx.DepthwiseConv": 1}
    assert [row.name for row in report.rows] == ["w"]  # no choice for a depthwise one
    graphs.assert_same(plain, sparse, images(2, 6, 9, 10))


def test_a_whole_network_stays_in_the_blocked_layout() -> None:
    """Layouts change inside operators at the edges alone: there is no node for it."""
    body = """
        c0 = Conv<pads=[1,1,1,1]>(x, w, b)
        r0 = Relu(c0)
        p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r0)
        n = BatchNormalization(p, scale, shift, mean, variance)
        r = Relu(n)
        c1 = Conv(r, v)
        k = Concat<axis=1>(p, c1)
        q = AveragePool<kernel_shape=[2,2], count_include_pad=1>(k)
        m = Mul(q, factor)
        s = Sigmoid(m)
        e = ReduceMean<keepdims=1>(s, axes)
        z = Mul(s, e)
        c2 = Conv(z, u)
        g = ReduceMean<keepdims=0>(c2, axes)
        y = Gemm<transB=1>(g, f, h)
    """
    one = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    plain = graph(
        "float[N,6,20,20] x => float[N,5] y", body, **CONV, v=weight(4, 8, 1, 1, density=0.6),
        scale=one, shift=one[::-1].copy(), mean=one - 1, variance=one + 1, axes=np.array([2, 3]),
        factor=weight(12, 1, 1, density=1), u=weight(12, 12, 1, 1),
        f=weight(5, 12), h=weight(5, density=1),
    )  # fmt: skip
    sparse, _ = lowered(plain)
    assert ops(sparse) == {
        "st3fx.SparseConv": 3, "st3fx.ImageMaxPool": 1, "st3fx.DepthwiseConv": 2,
        "st3fx.ImageConcat": 1,
        "st3fx.ImageAveragePool": 1, "Sigmoid": 1, "st3fx.ImageGlobalAveragePool": 2, "Flatten": 1,
        "st3fx.ChannelScale": 1, "st3fx.SparseLinear": 1,
    }  # fmt: skip
    first = next(iter(sparse.graph)).attributes
    assert [first.get_string(f"{side}_layout") for side in ("input", "output")] == [
        "nchw", "blocked"
    ]  # fmt: skip
    graphs.assert_same(plain, sparse, images(1, 6, 20, 20))
    graphs.assert_same(plain, sparse, images(3, 6, 20, 20))


@pytest.mark.parametrize(
    ("signature", "body", "shape", "expected"),
    [
        ("float[N,12] x => float[N,7] y", "y = Gemm<transB=1>(x, w)", (7, 12),
         {"st3fx.SparseLinear": 1}),
        ("float[N,12] x => float[N,7] y", "y = Gemm(x, w)", (12, 7), {"st3fx.SparseLinear": 1}),
        ("float[N,12] x => float[N,7] y", "a = Gemm(x, w, b)\ny = Relu(a)", (12, 7),
         {"st3fx.SparseLinear": 1}),
        ("float[N,4,12] x => float[N,4,7] y", "a = MatMul(x, w)\ny = Add(b, a)", (12, 7),
         {"st3fx.SparseLinear": 1}),
        ("float[N,4,12] x => float[N,4,7] y", "t = Transpose<perm=[1,0]>(w)\ny = MatMul(x, t)",
         (7, 12), {"st3fx.SparseLinear": 1}),
        ("float[N,12,4] x => float[N,7,4] y", "y = MatMul(w, x)", (7, 12),
         {"st3fx.SparseLinear": 1}),
        ("float[N,4,12] x => float[N,4,7] y", "a = MatMul(x, w)\ny = Add(a, c)", (12, 7),
         {"st3fx.SparseLinear": 1, "Add": 1}),
    ],
)  # fmt: skip
def test_products(
    signature: str, body: str, shape: tuple[int, ...], expected: dict[str, int]
) -> None:
    constants = {"w": weight(*shape), "b": weight(7, density=1), "c": weight(4, 1, density=1)}
    plain = graph(signature, body, **constants)
    sparse, report = lowered(plain)
    assert ops(sparse) == expected
    assert report.rows[0].sparsity == 1 - np.count_nonzero(constants["w"]) / constants["w"].size
    size = [3, *(int(part) for part in signature.partition("]")[0].split(",")[1:])]
    graphs.assert_same(plain, sparse, images(*size))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Gemm<alpha=2.0>(x, w)", "its input is transposed or scaled"),
        ("y = Gemm<beta=2.0>(x, w, b)", "its bias is computed or scaled"),
    ],
)
def test_a_product_that_stays_says_why(body: str, reason: str) -> None:
    plain = graph("float[N,12] x => float[N,7] y", body, w=weight(12, 7), b=weight(7))
    sparse, report = lowered(plain)
    assert ops(sparse) == {"Gemm": 1}
    assert [(row.reason, row.is_sparse) for row in report.rows] == [(reason, False)]


@pytest.mark.parametrize(
    ("signature", "body", "shape", "reason"),
    [
        ("float[N,6,9] x => float[N,8,K] y", "y = Conv(x, w)", (8, 6, 3), "1 dimensions, not 2"),
        (IMAGE, 'y = Conv<auto_pad="SAME_UPPER">(x, w)', (8, 6, 3, 3), "auto_pad"),
        ("float[N,6,H,9] x => float[N,8,K,L] y", "y = Conv(x, w)", (8, 6, 3, 3), "is not known"),
    ],
)
def test_a_convolution_that_stays_says_why(
    signature: str, body: str, shape: tuple[int, ...], reason: str
) -> None:
    sparse, report = lowered(graph(signature, body, w=weight(*shape)))
    assert ops(sparse) == {"Conv": 1}
    assert reason in report.rows[0].reason
    assert (report.sparse, sparse.opset_imports.get("st3fx")) == (0, None)


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    body = "a = Conv(x, w, b)\nc = Conv(x, w)\ny = Add(a, c)"
    plain = graph(IMAGE, body, **CONV)
    sparse, _ = lowered(plain)
    assert len(sparse.graph.initializers) == 4
    graphs.assert_same(plain, sparse, images(1, 6, 9, 10))


def test_a_report_is_json() -> None:
    _, report = lowered(graph(IMAGE, "y = Conv(x, w, b)", **CONV))
    data = report.to_dict()
    assert (data["sparse"], data["constants"], data["rows"][0]["shape"]) == (
        1,
        "test",
        (8, 6, 3, 3),
    )
