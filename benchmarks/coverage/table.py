"""The rows as a table for each library, and the totals over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.coverage.totals import Totals, failed

PEERS = ("nncf", "torch-pruning")


def show(rows: Mapping[str, Sequence[dict[str, Any]]], *, all_rows: bool = True) -> None:
    """Print a table for each library, and one of totals."""
    console = Console(width=170)
    if all_rows:
        for library, models in rows.items():
            console.print(_models(library, models))
    total = Table("library", "models", "parity", "one island", "reached", "below 95 %", "keys",
                  "fold", "ONNX", "of dense", *PEERS, title="Totals")  # fmt: skip
    for library, models in rows.items():
        total.add_row(library, *Totals.of(models).cells(PEERS))
    if len(rows) > 1:
        everything = [row for models in rows.values() for row in models]
        total.add_section()
        total.add_row("all", *Totals.of(everything).cells(PEERS))
    console.print(total)


def _models(library: str, models: Sequence[dict[str, Any]]) -> Table:
    table = Table("model", "ok", "islands", "sites", "reached", "ONNX", *PEERS, "s", "notes",
                  title=library)  # fmt: skip
    for row in models:
        converted = row.get("convert", {})
        prunable = converted.get("prunable", 0)
        table.add_row(
            row["model"],
            "yes" if converted.get("ok") else "NO",
            "1" if converted.get("one_island") else f"({converted.get('islands', '')})",
            str(converted.get("sites", "")),
            f"{converted['sparse'] / prunable:.2%}" if prunable else "",
            _exported(row.get("export")),
            *(_peer(row.get(peer), prunable) for peer in PEERS),
            str(converted.get("seconds", "")),
            notes(converted)[:90],
        )
    return table


def notes(row: dict[str, Any]) -> str:
    """What is to be said of one conversion, the worst first."""
    parts = [row["error"]] if "error" in row else failed(row)
    parts += [f"missing {name}" for name in row.get("missing", [])]
    parts += [row["refused"]] if "refused" in row else row.get("skipped", [])
    return "; ".join(parts)


def _exported(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["ok"]:
        return f"{row['relative']:.0e}" + (" fixed" if row["batch"] == "fixed" else "")
    return "NO" if row.get("dense") else "nor dense"


def _peer(row: dict[str, Any] | None, prunable: int) -> str:
    if row is None:
        return ""
    if "reached" not in row:
        return "fails"
    share = f"{min(1.0, row['reached'] / prunable):.0%}" if prunable else ""
    return share if row["runs"] else f"{share} broken"
