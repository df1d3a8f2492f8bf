"""A count of multiplications, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from st3fx.cli.views.tables import console, make_grid, make_table
from st3fx.cli.views.words import size_text

if TYPE_CHECKING:
    from st3fx.flops.flops_report import FlopsReport, LayerFlops

_WIDE = 120
"""Columns from which every number is written in full."""


def print_report(report: FlopsReport, rows: Sequence[LayerFlops]) -> None:
    """The layers, the other operations, and the totals in words.

    Args:
        report: The count.
        rows: The layers to show; none for the totals alone.
    """
    out = console()
    if rows:
        out.print(_layers(report, rows, out))
        if report.by_op:
            out.print(_operations(report))
    out.print(Text(_headline(report)), soft_wrap=out.width >= _WIDE)
    out.print(make_grid((Text(label, style="dim"), text) for label, text in totals(report)))


def _headline(report: FlopsReport) -> str:
    inputs = ", ".join(map(_shape, report.inputs)) or "its inputs"
    level = {"aten": "as it runs", "onnx": "as the graph has it"}[report.level]
    return f"{report.model}: one call with {inputs}, {level}, by the convention {report.convention}"


def totals(report: FlopsReport) -> Iterable[tuple[str, str]]:
    """The totals in words, each with what it is about."""
    left = report.sparse_macs / report.dense_macs if report.dense_macs else 1.0
    sparse = f", {report.sparse_macs:,} without the zeros ({left:.1%})" if report.has_values else ""
    yield "MACs", f"{report.dense_macs:,} dense{sparse}"
    over = "weights that multiply" if report.sites is None else "weights of the sites"
    if not report.has_values:
        yield "zeros", "not known: the model is on the meta device; --weights gives it values"
    else:
        yield (
            "zeros",
            (
                f"{report.weight_sparsity:.2%} of {report.weights:,} {over}, "
                f"{report.parameter_sparsity:.2%} of all {report.parameters:,} parameters"
            ),
        )
    if report.block is not None:
        yield "blocks", _blocks(report, report.block)
    rows = report.by_layer.values()
    outputs, inputs = sum(r.dead_outputs for r in rows), sum(r.dead_inputs for r in rows)
    if outputs or inputs:
        yield (
            "dead",
            (
                f"{outputs:,} output channels whose filter is all zero, {inputs:,} input channels "
                "that no filter reads"
            ),
        )
    yield "other", f"{report.elementwise_flops:,} operations that are no MACs"
    yield (
        "memory",
        (
            f"weights {size_text(report.weight_bytes)} dense, "
            f"{size_text(report.sparse_weight_bytes)} as bit masks and values; activations "
            f"{size_text(report.activation_bytes)} if nothing is fused"
        ),
    )
    if report.sparse_macs < report.dense_macs:
        yield (
            "speed",
            (
                f"at most {_times(report.mac_bound)} as fast if time goes by MACs, "
                f"{_times(report.flop_bound)} if by all operations"
            ),
        )
    if report.unknown:
        names = ", ".join(f"{name} ({_calls(count)})" for name, count in report.unknown.items())
        yield "unknown", f"no rule says what these cost, and they are in no total: {names}"


def _blocks(report: FlopsReport, size: int) -> str:
    left = report.blocks_left / report.blocks if report.blocks else 0.0
    inside = report.weight_nonzeros + report.block_zeros
    zeros = report.block_zeros / inside if inside else 0.0
    most = ""
    if 0 < report.fullest_block < size:
        most = f", and none has more than {report.fullest_block} nonzeros"
    return (
        f"{report.blocks_left:,} of {report.blocks:,} blocks of {size} inputs are left "
        f"({left:.1%}), {zeros:.1%} of the weights in them zero{most}: kernels that take blocks "
        f"whole multiply {report.block_share:.1%} of the weights"
    )


def _layers(report: FlopsReport, rows: Sequence[LayerFlops], out: Console) -> Table:
    wide = out.width >= _WIDE
    dead = any(row.dead_inputs or row.dead_outputs for row in rows)
    names = ["layer", "op", "shape", "weights", "nonzeros"] if wide else ["layer", "shape"]
    names += ["zeros", "dense MACs" if wide else "dense", "MACs", "share"]
    if report.block is not None:
        names += ["blocks", "left", "zeros in these", "fullest"] if wide else ["blocks"]
    names += ["dead in", "dead out"] if wide and dead else []
    cells = []
    for row in rows:
        cell = {
            "layer": row.name,
            "op": row.op if row.calls == 1 else f"{row.op} ×{row.calls}",
            "shape": _shape(row.shape),
            "weights": f"{row.parameters:,}" if row.parameters else "",
            "nonzeros": f"{row.nonzeros:,}" if row.parameters else "",
            "zeros": f"{row.sparsity:.1%}" if row.parameters else "",
            "dense MACs": f"{row.dense_macs:,}",
            "dense": short(row.dense_macs),
            "MACs": f"{row.sparse_macs:,}" if wide else short(row.sparse_macs),
            "share": f"{row.sparse_macs / report.sparse_macs if report.sparse_macs else 0:.1%}",
            **_block_cells(row, wide=wide),
            "dead in": _part(row.dead_inputs, row.inputs),
            "dead out": _part(row.dead_outputs, row.outputs),
        }
        cells.append([cell[name] for name in names])
    words = {"layer", "op"}
    return make_table(
        names, cells, numbers={*names} - words - {"shape"}, whole={*names} - words
    )  # fmt: skip


def _block_cells(row: LayerFlops, *, wide: bool) -> dict[str, str]:
    if not row.block_fill:
        return dict.fromkeys(("blocks", "left", "zeros in these", "fullest"), "")
    left, inside = row.blocks_left / row.blocks, row.nonzeros + row.block_zeros
    return {
        "blocks": f"{row.blocks:,}" if wide else f"{left:.1%}",
        "left": f"{left:.1%}",
        "zeros in these": f"{row.block_zeros / inside if inside else 0:.1%}",
        "fullest": str(row.fullest_block),
    }


def _operations(report: FlopsReport) -> Table:
    rows = sorted(report.by_op.values(), key=lambda row: -row.flops)
    names = ["other operations", "calls", "operations", "activations"]
    cells = [[r.op, f"{r.calls:,}", f"{r.flops:,}", size_text(r.activation_bytes)] for r in rows]
    return make_table(names, cells, numbers=names[1:], whole=names)


def short(number: int) -> str:
    """``4.09 G``, ``118 M``, ``512``: three digits."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            value = number / size
            return f"{value:.{2 - min(2, len(str(int(value))) - 1)}f} {unit}"
    return str(number)


def _part(dead: int, whole: int) -> str:
    return f"{dead:,} of {whole:,}" if dead else ""


def _times(ratio: float) -> str:
    return "any number of times" if ratio == float("inf") else f"{ratio:.2f} times"


def _calls(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
