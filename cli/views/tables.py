"""What a conversion did, as a person reads it.

Measured constants of the cost model, as a person reads them.

Which layers got sparse kernels, and why, as a person reads it.

What dead-channel elimination removed, as a person reads it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from st3fx.report.markup import plural

if TYPE_CHECKING:
    from st3fx.commands.calibrate import CalibrationResult
    from st3fx.export.result import SparseFile
    from st3fx.passes.channels.report import ChannelReport, LayerChannels
    from st3fx.passes.onnx.sparse_kernels.report import KernelReport, KernelRow
    from st3fx.plan.sites import IslandInfo, SparsityPlan


_PIPE_WIDTH = 10_000
"""Columns where the output is no terminal: a line of a table is never broken in a file."""


def console(file: TextIO | None = None) -> Console:
    """The console on ``file``, or on stdout."""
    terminal = Console(file=file, markup=False, highlight=False)
    if terminal.is_terminal:
        return terminal
    return Console(file=file, markup=False, highlight=False, width=_PIPE_WIDTH)


def print_plan(plan: SparsityPlan, out: Console) -> None:
    """Sites, islands, what was skipped and what kept its own forward."""
    out.print(_site_table(plan))
    out.print(island_line(plan.islands), soft_wrap=True)
    if plan.skipped:
        rows = [(s.name, s.op, _shape(s.shape), f"{s.numel:,}", s.reason) for s in plan.skipped]
        out.print(_table("skipped", ("parameter", "op", "shape", "parameters", "reason"), rows))
    if plan.opaque:
        rows_opaque = [(m.name or "(the model)", m.type, m.reason) for m in plan.opaque]
        out.print(
            _table(
                "own forward kept, with effective weights inside",
                ("module", "type", "reason"),
                rows_opaque,
            )
        )


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
        rest = f"{plan.method} learns how many to leave"
    else:
        left = round(plan.numel * (1 - plan.target))
        rest = f"{plan.method} at {plan.target:.4g} sparsity leaves about {left:,} of them"
    return (
        f"{plural(len(plan.sites), 'site')} with {plan.numel:,} of {plan.total_parameters:,} "
        f"parameters ({share:.1%}); {rest}"
    )


def _site_table(plan: SparsityPlan) -> Table:
    whole = plan.numel or 1
    above = ("", *(site.name for site in plan.sites))
    rows = [
        (s.name, s.op, _shape(s.shape), f"{s.numel:,}", f"{s.numel / whole:.2%}",
         _sources(plan.fed_by(s.name), above[index]))
        for index, s in enumerate(plan.sites)
    ]  # fmt: skip
    return _table("sites", ("name", "op", "shape", "parameters", "share", "fed by"), rows)


def _sources(names: Sequence[str], above: str) -> str:
    """What feeds a site: an arrow for the site in the row above, at most two names."""
    shown = ["↑" if name == above else name for name in names]
    more = f", {len(shown) - 2} more" if len(shown) > 2 else ""
    return ", ".join(shown[:2]) + more


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        number = name in ("parameters", "share")
        # Names are folded, never cut: they are what --exclude takes.
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def print_kernels(result: SparseFile) -> None:
    """The choice for each layer, what it is expected to gain, the comparison with PyTorch."""
    out, report = console(), result.kernels
    if report.rows:
        out.print(_kernels_table(report))
    for line in (_choice(report), _size(result), _parity(result)):
        if line:
            out.print(Text(line), soft_wrap=True)


def _kernels_table(report: KernelReport) -> Table:
    table = Table(
        title="kernels: expected µs for one sample on one thread", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("layer", overflow="fold")
    table.add_column("op")
    for name in ("shape", "zeros", "sparse", "dense"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("choice", overflow="fold")
    for row in report.rows:
        table.add_row(*map(Text, _cells(row)))
    return table


def _cells(row: KernelRow) -> tuple[str, ...]:
    choice = "sparse" if row.is_sparse else "dense"
    return (
        row.name.removesuffix(".weight"),
        row.op,
        "x".join(map(str, row.shape)),
        "" if row.sparsity is None else f"{row.sparsity:.1%}",
        _microseconds(row.sparse_us),
        _microseconds(row.dense_us),
        f"{choice}: {row.reason}" if row.reason else choice,
    )


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _choice(report: KernelReport) -> str:
    if not report.sparse:
        return (
            "no layer is expected to gain by a sparse kernel: the file has ONNX's own operators "
            f"alone (constants of the cost model: {report.constants})"
        )
    before = sum(row.dense_us or 0.0 for row in report.rows)
    chosen = (row.sparse_us if row.is_sparse else row.dense_us for row in report.rows)
    after = sum(time or 0.0 for time in chosen)
    return (
        f"{report.sparse} of {len(report.rows)} layers get sparse kernels: {before / after:.1f} "
        f"times as fast, as the cost model expects of these layers (constants: {report.constants})"
    )


def _size(result: SparseFile) -> str:
    if not result.parity:
        return "not compared with PyTorch"
    if result.open_inputs:
        return f"height and width of {', '.join(result.open_inputs)} are free in it"
    return "the size of its inputs is that of the example"


def _parity(result: SparseFile) -> str:
    if not result.parity:
        return ""
    worst = max(row.relative for row in result.parity)
    batches = ", ".join(str(size) for size in sorted({row.batch for row in result.parity}))
    return (
        f"ONNX Runtime with sparse kernels against PyTorch: {worst:.2g} relative at most, in "
        f"{len(result.parity)} calls at batch {batches}"
    )


ROWS = 12
"""Layers that are listed, those that lost most; --json has all."""


def print_channels(report: ChannelReport | None) -> None:
    """The layers that lost most, then the totals, then why constant channels stay."""
    if report is None:
        return
    out = console()
    changed = [layer for layer in report.layers if layer.changed]
    if changed:
        out.print(_layers_table(changed))
    if len(changed) > ROWS:
        more = f"... and {len(changed) - ROWS} more of {len(report.layers)} layers (--json has all)"
        out.print(Text(more), soft_wrap=True)
    before, after = report.channels
    line = f"removed {before - after:,} of {before:,} channels"
    line += f", {_share(report.parameters)} of the parameters"
    line += f" and {_share(report.macs)} of the multiplications of a dense runtime"
    out.print(Text(line), soft_wrap=True)
    for reason, count in report.kept.items():
        out.print(Text(f"{count:,} constant channels stay: {reason}"), soft_wrap=True)


def _layers_table(layers: list[LayerChannels]) -> Table:
    table = Table(title="dead channels", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("inputs", "outputs", "parameters", "MACs"):
        table.add_column(name, justify="right")
    chosen = sorted(layers, key=lambda layer: layer.parameters[1] - layer.parameters[0])[:ROWS]
    for layer in (layer for layer in layers if layer in chosen):
        cells = [layer.name.removesuffix(".weight")]
        cells += [_pair(layer.inputs), _pair(layer.outputs)]
        cells += [f"-{_share(layer.parameters)}", f"-{_share(layer.macs)}"]
        table.add_row(*map(Text, cells))
    return table


def _pair(sizes: tuple[int, int]) -> str:
    before, after = sizes
    return f"{before:,}" if before == after else f"{before:,} → {after:,}" if after else "gone"


def _share(sizes: tuple[int, int]) -> str:
    """How much of it is gone."""
    before, after = sizes
    return f"{(before - after) / before:.1%}" if before else "0.0%"


def print_calibration(result: CalibrationResult) -> None:
    """The constants beside the defaults, how well they explain the times, where they are kept."""
    out = console()
    title = "cost model: nanoseconds, one thread"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("here", "default"):
        table.add_column(name, justify="right")
    defaults = dataclasses.asdict(result.defaults)
    for name, value in dataclasses.asdict(result.costs).items():
        table.add_row(name, f"{1e9 * value:.3g}", f"{1e9 * defaults[name]:.3g}")
    out.print(table)
    line = (
        f"{result.layers} layers measured on {result.machine['cpu']} ({result.machine['isa']}); "
        f"half of them are within {result.error:.0%} of the model; wrote {result.path}"
    )
    out.print(Text(line), soft_wrap=True)
