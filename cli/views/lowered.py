"""What the lowering of a quantized file did, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from st3fx.cli.views.tables import console, make_table
from st3fx.cli.views.words import shape_text, size_text

if TYPE_CHECKING:
    from st3fx.export.quantized import QuantFile
    from st3fx.passes.onnx.quant_kernels.quant_report import QuantReport, QuantRow


def print_lowered(result: QuantFile) -> None:
    """The choice for each layer, the comparison, the file."""
    out = console()
    if result.kernels.rows:
        out.print(quant_table(result.kernels))
    for line in (*lowered_lines(result), _file(result)):
        out.print(Text(line), soft_wrap=True)


def lowered_lines(result: QuantFile) -> Iterator[str]:
    """How many layers our kernels compute, and how near they come."""
    yield _choice(result.kernels)
    if result.path is not None:
        yield _compared(result)


def quant_table(report: QuantReport) -> Table:
    """A row for each layer."""
    numbers = ("shape", "zeros", "blocks", "ours", "dense")
    return make_table(
        ("layer", "op", *numbers, "choice"), map(_cells, report.rows), numbers=numbers,
        whole=numbers, title="INT8 kernels: expected µs for one sample on one thread",
    )  # fmt: skip


def _cells(row: QuantRow) -> tuple[str, ...]:
    choice = "ours" if row.is_ours else "ONNX Runtime's"
    return (
        row.name.removesuffix("_quantized").removesuffix(".weight"),
        row.op,
        shape_text(row.shape),
        "" if row.sparsity is None else f"{row.sparsity:.1%}",
        "" if row.blocks is None else f"{row.blocks:.1%}",
        _microseconds(row.ours_us),
        _microseconds(row.dense_us),
        f"{choice}: {row.reason}" if row.reason else choice,
    )


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _choice(report: QuantReport) -> str:
    if not report.operators:
        return "no layer is expected to gain by a kernel of ours"
    before = sum(row.dense_us or 0.0 for row in report.rows)
    chosen = (row.ours_us if row.is_ours else row.dense_us for row in report.rows)
    after = sum(time or 0.0 for time in chosen)
    return (
        f"{report.ours} of {len(report.rows)} layers run by our kernels: {before / after:.1f} "
        "times as fast as dense INT8, as the cost model expects of these layers"
    )


def _compared(result: QuantFile) -> str:
    if result.difference is None:
        return "not compared with the file that it was made from"
    return (
        f"against the same file in float32: {result.difference:.2g} of the largest magnitude at "
        f"most, ONNX Runtime's own INT8 kernels {result.own_difference:.2g}"
    )


def _file(result: QuantFile) -> str:
    if result.path is None:
        return "wrote no file"
    return f"wrote {result.path}: {size_text(result.size)}, {size_text(result.given_size)} before"
