"""What a conversion found, as a person reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from st3fx.cli.views.tables import make_table
from st3fx.cli.views.words import shape_text
from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.plan.sites import IslandInfo, SkippedSite, SparsityPlan

_NUMBERS = ("parameters", "share")


def print_plan(plan: SparsityPlan, out: Console) -> None:
    """Sites, islands, what was skipped and what kept its own forward."""
    out.print(_site_table(plan))
    out.print(island_line(plan.islands), soft_wrap=True)
    if plan.skipped:
        rows = [(s.name, s.op, shape_text(s.shape), f"{s.numel:,}", s.reason) for s in plan.skipped]
        columns = ("parameter", "op", "shape", "parameters", "reason")
        out.print(make_table(columns, rows, numbers=_NUMBERS, title="skipped"))
    if plan.opaque:
        rows_opaque = [(m.name or "(the model)", m.type, m.reason) for m in plan.opaque]
        title = "own forward kept, with effective weights inside"
        out.print(make_table(("module", "type", "reason"), rows_opaque, title=title))


def island_line(islands: Sequence[IslandInfo]) -> str:
    """``1 island, 2 graphs (train, eval), 174 nodes``."""
    words = {"both": "train and eval in one"}
    modes = Counter(words.get(mode, mode) for island in islands for mode in island.modes)
    graphs = sum(modes.values())
    if not islands:
        return "no island: every module keeps its own forward"
    if max(modes.values()) == 1:
        kinds = ", ".join(modes)
    else:
        kinds = ", ".join(f"{count} {mode}" for mode, count in modes.items())
    nodes = sum(island.nodes for island in islands)
    return f"{plural(len(islands), 'island')}, {plural(graphs, 'graph')} ({kinds}), {nodes:,} nodes"


def total_line(plan: SparsityPlan) -> str:
    """What the plan means for the whole model."""
    share = plan.numel / plan.total_parameters if plan.total_parameters else 0.0
    if plan.target is None:
        rest = f"{plan.method_text} learns how many to leave"
    else:
        left = round(plan.numel * (1 - plan.target))
        rest = f"{plan.method_text} at {plan.target:.4g} sparsity leaves about {left:,} of them"
    return (
        f"{plural(len(plan.sites), 'site')} with {plan.numel:,} of {plan.total_parameters:,} "
        f"parameters ({share:.1%}); {rest}"
    )


def skipped_lines(skipped: Sequence[SkippedSite], *, whole: bool = False) -> list[str]:
    """What stays dense and why: how many for each reason, and the largest of them.

    Args:
        skipped: Parameters that stay dense.
        whole: Whether each of them is named.
    """
    if whole:
        return [f"{item.name} {shape_text(item.shape)}: {item.reason}" for item in skipped]
    groups: dict[str, list[SkippedSite]] = {}
    for item in skipped:
        groups.setdefault(item.reason, []).append(item)
    lines = []
    for reason, items in sorted(groups.items(), key=lambda pair: -sum(i.numel for i in pair[1])):
        largest = max(items, key=lambda item: item.numel)
        size = f"{largest.name} {shape_text(largest.shape)}"
        named = size if len(items) == 1 else f"{len(items)}, the largest {size}"
        lines.append(f"{named}: {reason}")
    return lines


def _site_table(plan: SparsityPlan) -> Table:
    whole = plan.numel or 1
    above = ("", *(site.name for site in plan.sites))
    rows = [
        (s.name, s.op, shape_text(s.shape), f"{s.numel:,}", f"{s.numel / whole:.2%}",
         _sources(plan.fed_by(s.name), above[index]))
        for index, s in enumerate(plan.sites)
    ]  # fmt: skip
    columns = ("name", "op", "shape", "parameters", "share", "fed by")
    return make_table(columns, rows, numbers=_NUMBERS, title="sites", spare=("fed by", "share"))


def _sources(names: Sequence[str], above: str) -> str:
    """What feeds a site: an arrow for the site in the row above, at most two names."""
    shown = ["↑" if name == above else name for name in names]
    more = f", {len(shown) - 2} more" if len(shown) > 2 else ""
    return ", ".join(shown[:2]) + more
