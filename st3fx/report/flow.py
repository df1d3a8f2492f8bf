"""The dataflow laid out, and drawn as rows of the page: lanes at the left, names and sparsities.

A node has a row, in the order of execution. A value keeps its node's lane until its last use, as a
register does in a compiler; a node takes the lane of an input that ends there, or the first that is
free. So a chain is one straight line, and a skip connection is a lane beside it. However large a
model is, lanes are as many as values that are alive at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import networkx as nx
from markupsafe import Markup

from st3fx.report import markup
from st3fx.report.chart import FlowChart, FlowRow
from st3fx.report.markup import EMPTY, listed, shape, tag


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


ROW = 24
"""Height of a row in pixels, here and in the style sheet."""

_WIDEST = 220.0
"""Pixels that all lanes have together at most."""

_SIGNS = {"add": "+", "mul": "×", "cat": "∥"}


def draw_flow(chart: FlowChart) -> Markup:
    """Lanes and rows in a box that scrolls within itself where it is long."""
    step = min(16.0, _WIDEST / chart.lanes)
    width = step * chart.lanes + 8
    height = ROW * len(chart.rows)
    lines = tag("path", d="".join(_edge(chart, edge, step) for edge in chart.edges), class_="edge")
    nodes = (_node(row, index, step) for index, row in enumerate(chart.rows))
    drawing = tag(
        "svg", lines, *nodes, width=width, height=height, viewBox=f"0 0 {width:g} {height}",
        role="img", aria_label=chart.alt,
    )  # fmt: skip
    rows = tag("ol", *(_row(row) for row in chart.rows))
    longest = max((len(_words(row)) for row in chart.rows), default=0)
    inner = tag("div", drawing, rows, class_="flow", style=f"--name: {min(longest, 44)}ch")
    return tag("div", inner, class_="scroll tall", tabindex=0, role="region", aria_label="dataflow")


def place(lane: int, row: int, step: float) -> tuple[float, float]:
    """Where a node is, in pixels."""
    return 8 + lane * step, ROW * (row + 0.5)


def _edge(chart: FlowChart, edge: tuple[int, int], step: float) -> str:
    """Down the source's lane, and in the last gap over to the target."""
    (x1, y1), (x2, y2) = (place(chart.rows[row].lane, row, step) for row in edge)
    turn, middle = y2 - ROW, y2 - ROW / 2
    if x1 == x2:
        return f"M{x1:g} {y1:g}V{y2:g}"
    down = f"V{turn:g}" if turn > y1 else ""
    return f"M{x1:g} {y1:g}{down}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"


def _node(row: FlowRow, index: int, step: float) -> Markup:
    x, y = place(row.lane, index, step)
    radius = 4.5 if row.kind == "site" else 3.0
    return tag("circle", cx=x, cy=y, r=radius, class_=f"node {row.kind}")


def _words(row: FlowRow) -> str:
    sign = f"{_SIGNS[row.kind]} " if row.kind in _SIGNS else ""
    return f"{sign}{row.name.removesuffix('.weight')}"


def _row(row: FlowRow) -> Markup:
    share = row.sparsity
    meter = EMPTY if share is None else tag(
        "span", tag("span", markup.percent(share), class_="share"),
        tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="meter"),
        class_="zeros",
    )  # fmt: skip
    # Where there is no room, the beginning of a name goes: its end tells the rows apart.
    head, dot, tail = _words(row).rpartition(".")
    name = tag("span", tag("span", f"{head}{dot}"), tag("b", tail), class_="name")
    detail = tag("span", row.detail, class_="detail")
    kind = None if row.kind == "site" else "join"
    return tag("li", name, detail, meter, title=row.tip, class_=kind)
