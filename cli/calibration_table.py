"""Measured constants of the cost model, as a person reads them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.tables import console

if TYPE_CHECKING:
    from st3fx.verbs.calibrating import CalibrationResult


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
