"""The dataflow laid out: a node on each row, in the order of execution, and lanes for values.

A value keeps its node's lane until its last use, as a register does in a compiler; a node takes the
lane of an input that ends there, or the first that is free. So a chain is one straight line, and a
skip connection is a lane beside it. However large a model is, lanes are as many as values that are
alive at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import networkx as nx

from st3fx.report.chart import FlowChart, FlowRow
from st3fx.report.text import listed, shape


def flow_chart(graph: nx.DiGraph, sparsity: Mapping[str, float]) -> FlowChart:
    """The picture of ``st3fx.dataflow``.

    Args:
        graph: Who feeds whom.
        sparsity: Site -> share of zeros.
    """
    order = _order(graph)
    row_of = {name: row for row, name in enumerate(order)}
    edges = sorted((row_of[a], row_of[b]) for a, b in graph.edges if row_of[a] < row_of[b])
    lanes = _lanes(len(order), edges)
    rows = tuple(
        FlowRow(
            name=name,
            kind=graph.nodes[name]["kind"],
            lane=lanes[row],
            detail=_detail(graph.nodes[name]),
            sparsity=sparsity.get(name),
            tip=_tip(graph, name, row_of),
        )
        for row, name in enumerate(order)
    )
    joins = sum(row.kind in ("add", "mul", "cat") for row in rows)
    sites = sum(row.kind == "site" for row in rows)
    return FlowChart(
        key="dataflow",
        title="Who feeds whom",
        alt=f"Dataflow of {sites} sites and {joins} joins with {len(edges)} connections",
        rows=rows,
        edges=tuple(edges),
        lanes=max(lanes, default=0) + 1,
    )


def _order(graph: nx.DiGraph) -> list[str]:
    """Topological order that follows the order of execution.

    A weight that is used twice may feed itself through others: an edge that closes such a circle
    is not waited for.
    """
    known = {name: float(place) for place, name in enumerate(graph.nodes)
             if graph.nodes[name]["kind"] == "site"}  # fmt: skip
    waiting = {name: set(graph.predecessors(name)) - {name} for name in graph.nodes}
    # An input comes first, a join right after the last of what it joins, an output at the end.
    place = {name: known.get(name, -1.0) for name in graph.nodes}
    ready = [(place[name], name) for name, before in waiting.items() if not before]
    heapq.heapify(ready)
    done: dict[str, None] = {}
    while len(done) < len(waiting):
        if not ready:
            left = [name for name in waiting if name not in done]
            first = min(left, key=lambda name: (name not in known, place[name], name))
            heapq.heappush(ready, (place[first], first))
        _, name = heapq.heappop(ready)
        if name in done:
            continue
        done[name] = None
        for target in graph.successors(name):
            waiting[target].discard(name)
            if target not in known:
                place[target] = max(place[target], place[name] + 1e-6)
            if not waiting[target] and target not in done:
                heapq.heappush(ready, (place[target], target))
    return list(done)


def _lanes(rows: int, edges: list[tuple[int, int]]) -> list[int]:
    """The lane of each row."""
    last = list(range(rows))
    inputs: list[list[int]] = [[] for _ in range(rows)]
    for source, target in edges:
        last[source] = max(last[source], target)
        inputs[target].append(source)
    lanes: list[int] = []
    busy: dict[int, int] = {}  # lane -> last row in which its value is read
    for row in range(rows):
        free = [lanes[source] for source in inputs[row] if last[source] == row]
        busy = {lane: end for lane, end in busy.items() if end > row}
        lane = min(free, default=None)
        if lane is None:
            lane = next(k for k in range(rows) if k not in busy)
        lanes.append(lane)
        busy[lane] = last[row]
    return lanes


def _detail(node: Mapping[str, object]) -> str:
    if node["kind"] == "site":
        return f"{node['op']} {shape(node['shape'])}"  # type: ignore[arg-type]
    return f"dim {node['dim']}" if "dim" in node else ""


def _tip(graph: nx.DiGraph, name: str, row_of: Mapping[str, int]) -> str:
    lines = [name]
    sources = sorted(graph.predecessors(name), key=row_of.__getitem__)
    for source in sources[:8]:
        through = graph.edges[source, name]["through"]
        lines.append(f"from {source}{' through ' + listed(through, 5) if through else ''}")
    if len(sources) > 8:
        lines.append(f"and {len(sources) - 8} more")
    return "\n".join(lines)
