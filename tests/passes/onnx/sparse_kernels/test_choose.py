"""Dense is kept where dense wins, layout changes included; tensors get the cheaper layout."""

from __future__ import annotations

import dataclasses

import numpy as np

from st3fx.runtime.calibration import Calibration
from st3fx.runtime.costs import Costs
from tests.passes.onnx import graphs
from tests.passes.onnx.graphs import SPARSE_WINS, Array, graph, lowered, ops, weight

SIGNATURE = "float[N,16,20,20] x => float[N,16,H,W] y"
THREE = "a = Conv(x, u)\nb = Conv(a, v)\ny = Conv(b, w)"


def images() -> Array:
    return np.random.default_rng(0).standard_normal((2, 16, 20, 20), dtype=np.float32)


def choice(body: str, costs: Costs, **densities: float) -> tuple[list[bool], dict[str, int]]:
    """Which layers are sparse, and the operators; the graph computes what it did."""
    constants = {
        name: weight(16, 16, 1, 1, density=density, seed=index)
        for index, (name, density) in enumerate(densities.items())
    }
    plain = graph(SIGNATURE, body, **constants)
    sparse, report = lowered(plain, Calibration(costs))
    graphs.assert_same(plain, sparse, images())
    return [row.is_sparse for row in report.rows], dict(ops(sparse))


EVEN_AT_HALF = Costs(
    call=1e-9, multiply=3.2e-10, row=0.0, pack=1e-14, dense_pointwise=1e-11, dense_store=0.0
)  # fmt: skip
"""A 1×1 layer is as fast dense as sparse where half of its weights are zero."""


def test_each_layer_by_its_density() -> None:
    costs = EVEN_AT_HALF
    assert choice(THREE, costs, u=0.05, v=1.0, w=0.05)[0] == [True, False, True]
    assert choice(THREE, costs, u=0.3, v=0.7, w=0.4)[0] == [True, False, True]
    assert choice(THREE, costs, u=1.0, v=1.0, w=1.0) == ([False] * 3, {"Conv": 3})


def test_nothing_changes_where_no_layer_gains() -> None:
    body = "a = Conv(x, u)\nr = Relu(a)\np = MaxPool<kernel_shape=[2,2]>(r)\ny = Conv(p, v)"
    found, operators = choice(body, Costs(call=1.0), u=0.05, v=0.05)
    assert (found, operators) == ([False, False], {"Conv": 2, "Relu": 1, "MaxPool": 1})


def test_an_operator_reads_and_writes_what_a_dense_neighbour_wants() -> None:
    """Between sparse and dense there is no node: the sparse one changes the layout as it works."""
    _, operators = choice(THREE, EVEN_AT_HALF, u=0.05, v=1.0, w=0.05)
    assert operators == {"st3fx.SparseConv": 2, "Conv": 1}


def test_a_pool_is_the_runtimes_where_its_input_is() -> None:
    body = "a = Conv(x, u)\np = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)\ny = Conv(p, v)"
    found, operators = choice(body, EVEN_AT_HALF, u=1.0, v=0.05)
    assert (found, operators["Conv"], operators["MaxPool"]) == ([False, True], 1, 1)
    found, operators = choice(body, EVEN_AT_HALF, u=0.05, v=0.05)
    assert (found, operators["st3fx.ImageMaxPool"]) == ([True, True], 1)


RESIDUAL = (
    "a = Conv(x, u)\nb = Conv(a, v)\ns = Add(a, b)\nc = Conv(s, w)\nt = Add(s, c)\ny = Conv(t, z)"
)


def test_a_dense_layer_in_a_residual_stream_pays_for_its_layout() -> None:
    """``v`` alone would be dense by a little; with two changes of layout around it, it is not."""
    about = {"u": 0.05, "v": 0.6, "w": 0.05, "z": 0.05}
    cheap = Costs(
        call=0.0, multiply=3.2e-8, row=0.0, pack=1e-9, move=0.0,
        dense_pointwise=1e-9, dense_store=0.0,
    )  # fmt: skip
    found, operators = choice(RESIDUAL, cheap, **about)
    assert (found, operators["Conv"]) == ([True, False, True, True], 1)
    found, _ = choice(RESIDUAL, dataclasses.replace(cheap, move=1e-9), **about)
    assert found == [True, True, True, True]


def test_a_value_changes_its_layout_once_for_all_its_readers() -> None:
    body = "a = Conv(x, u)\nb = Conv(a, v)\nc = Transpose(a)\nd = Transpose(a)\ne = Add(c, d)"
    body += "\nf = Transpose(e)\ng = Add(f, b)\ny = Conv(g, w)"
    _, operators = choice(body, SPARSE_WINS.costs, u=0.1, v=0.1, w=0.1)
    assert operators.get("st3fx.Layout", 0) <= 2
    assert operators["st3fx.SparseConv"] == 3


def test_graph_outputs_are_as_onnx_has_them() -> None:
    """An output that the blocked layout is used behind."""
    signature = "float[N,16,20,20] x => float[N,16,20,20] r, float[N,16,20,20] y"
    plain = graph(
        signature, "a = Conv(x, u)\nr = Relu(a)\ny = Conv(r, v)",
        u=weight(16, 16, 1, 1), v=weight(16, 16, 1, 1, seed=1),
    )  # fmt: skip
    sparse, _ = lowered(plain, SPARSE_WINS)
    assert [value.name for value in sparse.graph.outputs] == ["r", "y"]
    assert [list(value.shape or ())[1:] for value in sparse.graph.outputs] == [[16, 20, 20]] * 2
    graphs.assert_same(plain, sparse, images())
