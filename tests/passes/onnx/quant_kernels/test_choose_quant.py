"""The cost model decides, for what is connected as a whole and for each layer."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import onnx

from st3fx.runtime.costs import QuantCosts
from tests.passes.onnx.quant_kernels.agreement import agree, lowered
from tests.passes.onnx.quant_kernels.nets import Net

CHEAP_MOVES = QuantCosts(
    call=0.0, block=1.0, shared=1.0, row=0.0, pack=0.0, move=1e-9, dense=1 / 64
)
"""A block takes as long as 64 products of a dense layer: two in five blocks gain, all do not."""


def conv(net: Net, value: str, *, dense: bool) -> str:
    """A layer of 16 channels, with two in five blocks or all of them and twice the work."""
    whole = net.integers(16, 16, 1, 1)
    if dense:
        whole = np.where(whole == 0, np.int8(1), whole)
    scale = net.hold(np.full(16, 2e-3, np.float32)), net.hold(np.zeros(16, np.int8))
    weight = net.op("DequantizeLinear", net.hold(whole, "weight"), *scale, axis=0)
    return net.q(net.op("Conv", value, weight), 0.1, 120)


def chain(*dense: bool) -> tuple[onnx.ModelProto, Net]:
    """Layers one after the other."""
    net = Net("N", 16, 12, 16)
    value = net.q("x")
    for each in dense:
        value = conv(net, value, dense=each)
    return net.model(value), net


SLOW_DENSE = dataclasses.replace(CHEAP_MOVES, block=1.7, shared=1.7)
"""All blocks take longer than the dense layer, two in five still gain."""


def test_a_graph_without_a_layer_that_gains_stays_as_it_was() -> None:
    model, _ = chain(True, True)
    proto, report = lowered(model, SLOW_DENSE)
    assert report.operators == {}
    assert [row.is_ours for row in report.rows] == [False, False]
    assert all("as fast" in row.reason for row in report.rows)
    assert [node.op_type for node in proto.graph.node] == [n.op_type for n in model.graph.node]


def test_rows_that_read_the_same_inputs_have_a_price_of_their_own() -> None:
    model, net = chain(True, True)
    result = agree(model, net.feeds(), dataclasses.replace(SLOW_DENSE, shared=0.5))
    assert [row.is_ours for row in result.report.rows] == [True, True]


def test_a_dense_layer_stays_where_moves_are_cheap() -> None:
    model, net = chain(False, True, False)
    result = agree(model, net.feeds(), SLOW_DENSE)
    assert [row.is_ours for row in result.report.rows] == [True, False, True]
    assert result.report.operators["QuantLayout"] == 2
    kinds = collections.Counter(node.op_type for node in result.model.graph.node)
    assert kinds["Conv"] == 1


def test_a_dense_layer_between_others_is_ours_where_moves_are_dear() -> None:
    model, net = chain(False, True, False)
    # Apart 461 + 768 + 461 and three moves of 210, together 461 + 1152 + 461 and one, else 2304.
    costs = dataclasses.replace(SLOW_DENSE, block=1.5, shared=1.5, move=210 / (2 * 16 * 12 * 16))
    result = agree(model, net.feeds(), costs)
    assert [row.is_ours for row in result.report.rows] == [True, True, True]
    assert "QuantLayout" not in result.report.operators


def test_moves_that_cost_more_than_a_layer_gains_leave_it() -> None:
    model, _ = chain(True, False, True)
    costs = dataclasses.replace(SLOW_DENSE, move=1e3)
    assert lowered(model, costs)[1].operators == {}


def test_rows_say_how_much_is_left() -> None:
    model, _ = chain(False, True)
    _, report = lowered(model, CHEAP_MOVES)
    few, all_ = report.rows
    assert few.blocks is not None
    assert few.sparsity is not None
    assert 0.3 < few.blocks < 0.5
    assert few.sparsity > 1 - few.blocks - 0.01
    assert (all_.blocks, all_.shape, all_.op) == (1.0, (16, 16, 1, 1), "Conv")
    assert few.name.startswith("weight")
    assert report.to_dict()["ours"] == report.ours
