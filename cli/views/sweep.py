"""A model at many sparsities, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from st3fx.cli.views.tables import console, make_grid, make_table
from st3fx.cli.views.words import size_text
from st3fx.report.markup import listed

if TYPE_CHECKING:
    from st3fx.report.sweep_result import SweepResult


def print_sweep(result: SweepResult) -> None:
    """The table, how it was measured, what was picked, what was written."""
    from st3fx.report.sweep_page import how
    from st3fx.report.sweep_result import share

    out = console()
    heads, *lines = result.to_table()
    title = f"{result.name} on {result.data}"
    out.print(make_table(heads, lines, numbers=heads[1:], whole=heads, title=title))
    out.print(Text(f"* as trained. {how(result)}"), soft_wrap=not out.is_terminal)
    for row in result.rows:
        if row.empty:
            out.print(Text(f"{row.name}: no weight is left in {listed(row.empty)}"), soft_wrap=True)
    picked = result.picked
    if picked is not None:
        line = f"\npicked {share(picked.sparsity)}, the sparsest with {picked.condition}"
        out.print(Text(f"{line}\n{picked.folder}/"), soft_wrap=True)
        about = {
            "model.st3fx": "for the other commands",
            "folded.safetensors": "the weights alone, zeros where pruned",
            "model.st3w": "the same, without the zeros",
        }
        out.print(make_grid(
            (f"  {name}", Text(size_text(size), justify="right"), about[name])
            for name, size in picked.files.items()
        ))  # fmt: skip
    if result.page is not None:
        out.print(Text(f"wrote {result.page} and {result.page.with_suffix('.json').name}"),
                  soft_wrap=True)  # fmt: skip
