"""The end of a run, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from st3fx.cli.tables import console
from st3fx.cli.words import duration, percent

if TYPE_CHECKING:
    from st3fx.training.result import TrainResult


def print_summary(result: TrainResult) -> None:
    """Accuracy, sparsity and files."""
    out = console()
    out.print(Text(_verdict(result)), soft_wrap=True)
    for name in result.empty:
        out.print(Text(f"{name} has no weight left"), soft_wrap=True)
    if result.files:
        out.print(Text(f"\n{result.folder}/"), soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for name, size in result.files.items():
            table.add_row(Text(f"  {name}"), Text(size_text(size)), Text(_about(name, result)))
        out.print(table)


def _about(name: str, result: TrainResult) -> str:
    if name == "folded.safetensors":
        compressed, dense = size_text(result.compressed_bytes), size_text(result.dense_bytes)
        return f"the weights alone, zeros where pruned; {compressed} compressed, {dense} dense"
    return {"model.st3fx": "the trained model, for the other commands"}.get(name, "")


def _verdict(result: TrainResult) -> str:
    before = "" if result.dense is None else f"{percent(result.dense)} dense, "
    top5 = "" if result.scores.top5 is None else f" (top-5 {percent(result.scores.top5)})"
    best = ""
    if result.best is not None and result.best[0] > result.scores.top1:
        best = f"; best {percent(result.best[0])} after epoch {result.best[1]}"
    took = f", {result.steps:,} steps in {duration(result.seconds)}" if result.seconds else ""
    return (
        f"{result.name}: top-1 {before}{percent(result.scores.top1)}{top5} at "
        f"{percent(result.sparsity)} sparsity{best}{took}"
    )


def size_text(size: int) -> str:
    """``152 kB``, ``1.1 MB``."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
