from __future__ import annotations

import networkx as nx

from st3fx.report.flow import draw_flow, flow_chart
from tests.report.made import block_names, chain


def test_a_skip_connection_is_a_lane_beside_the_chain() -> None:
    names = [f"conv{k}.weight" for k in range(6)]
    chart = flow_chart(chain(names), dict.fromkeys(names, 0.5))
    assert [row.name for row in chart.rows] == [
        "x", *names[:3], "add_2", *names[3:], "add_5", "output",
    ]  # fmt: skip
    # What is added later keeps lane 0, the three layers are in lane 1.
    assert [row.lane for row in chart.rows] == [0, 1, 1, 1, 0, 1, 1, 1, 0, 0]
    assert chart.lanes == 2
    assert (0, 4) in chart.edges
    assert chart.rows[1].tip == "conv0.weight\nfrom x through relu"
    assert chart.rows[1].detail == "conv2d 8×8×3×3"
    assert chart.rows[4].sparsity is None


def test_no_node_lies_on_a_value_that_is_still_needed() -> None:
    graph = nx.gn_graph(120, seed=3).reverse()
    graph.add_edges_from((k, k + 7) for k in range(0, 100, 5))
    dag = nx.DiGraph((a, b) for a, b in graph.edges if a < b)
    named = nx.relabel_nodes(dag, {k: f"n{k:03}" for k in dag})
    nx.set_node_attributes(named, "add", "kind")
    nx.set_edge_attributes(named, (), "through")
    chart = flow_chart(named, {})
    for source, target in chart.edges:
        lane = chart.rows[source].lane
        assert all(row.lane != lane for row in chart.rows[source + 1 : target])


def test_dense_blocks_have_as_many_lanes_as_living_values() -> None:
    graph = nx.DiGraph()
    for index in range(8):
        graph.add_node(f"s{index}", kind="site", op="conv2d", shape=(4, 4, 1, 1))
        for before in range(index):
            graph.add_edge(f"s{before}", f"s{index}", through=("cat",))
    chart = flow_chart(graph, {})
    assert chart.lanes == 7
    assert len(chart.edges) == 28


def test_a_weight_that_feeds_itself_through_others_is_no_trap() -> None:
    graph = nx.DiGraph()
    for name in ("a", "b"):
        graph.add_node(name, kind="site", op="linear", shape=(4, 4))
    graph.add_node("x", kind="input")
    graph.add_edges_from([("x", "a"), ("a", "b"), ("b", "a"), ("a", "a")], through=())
    chart = flow_chart(graph, {})
    assert [row.name for row in chart.rows] == ["x", "a", "b"]
    assert chart.edges == ((0, 1), (1, 2))
    assert "from b" in chart.rows[1].tip


def test_a_weight_that_feeds_itself_keeps_its_place() -> None:
    graph = nx.DiGraph()
    for name in ("b", "a"):
        graph.add_node(name, kind="site", op="rnn", shape=(4, 4))
    graph.add_node("x", kind="input")
    graph.add_edges_from([("x", "b"), ("b", "b"), ("x", "a")], through=())
    assert [row.name for row in flow_chart(graph, {}).rows] == ["x", "b", "a"]


def test_sites_outside_graphs_and_no_nodes_at_all() -> None:
    graph = nx.DiGraph()
    graph.add_node("alone.weight", kind="site", op="linear", shape=(2, 2))
    assert [row.name for row in flow_chart(graph, {}).rows] == ["alone.weight"]
    assert flow_chart(nx.DiGraph(), {}).rows == ()
    assert "<svg" in draw_flow(flow_chart(nx.DiGraph(), {}))


def test_the_drawing_stays_narrow_and_grows_with_the_rows_only() -> None:
    names = block_names(500)
    drawn = draw_flow(flow_chart(chain(names), dict.fromkeys(names, 0.5)))
    assert len(drawn) < 500_000
    assert drawn.count("<li") == 500 + 166 + 2
    wide = nx.DiGraph()
    for index in range(200):
        wide.add_node(f"s{index}", kind="input")
        wide.add_edge(f"s{index}", "end", through=())
    wide.nodes["end"]["kind"] = "cat"
    assert 'width="228"' in draw_flow(flow_chart(wide, {}))
