"""The dataflow as rows of the page: lanes drawn at the left, names and sparsities as text."""

from __future__ import annotations

from st3fx.report import text
from st3fx.report.chart import FlowChart, FlowRow
from st3fx.report.markup import EMPTY, Markup, tag

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
        "span", tag("span", text.percent(share), class_="share"),
        tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="meter"),
        class_="zeros",
    )  # fmt: skip
    # Where there is no room, the beginning of a name goes: its end tells the rows apart.
    head, dot, tail = _words(row).rpartition(".")
    name = tag("span", tag("span", f"{head}{dot}"), tag("b", tail), class_="name")
    detail = tag("span", row.detail, class_="detail")
    kind = None if row.kind == "site" else "join"
    return tag("li", name, detail, meter, title=row.tip, class_=kind)
