"""Which layers got sparse kernels, and why, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.tables import console

if TYPE_CHECKING:
    from st3fx.export.sparse_result import SparseFile
    from st3fx.onnx_passes.sparse_kernels.report import KernelReport, KernelRow


def print_kernels(result: SparseFile) -> None:
    """The choice for each layer, what it is expected to gain, the comparison with PyTorch."""
    out, report = console(), result.kernels
    if report.rows:
        out.print(_table(report))
    for line in (_choice(report), _size(result), _parity(result)):
        if line:
            out.print(Text(line), soft_wrap=True)


def _table(report: KernelReport) -> Table:
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
