"""What dead-channel elimination removed, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from st3fx.cli.tables import console

if TYPE_CHECKING:
    from st3fx.passes.channels.report import ChannelReport, LayerChannels

ROWS = 12
"""Layers that are listed, those that lost most; --json has all."""


def print_channels(report: ChannelReport | None) -> None:
    """The layers that lost most, then the totals, then why constant channels stay."""
    if report is None:
        return
    out = console()
    changed = [layer for layer in report.layers if layer.changed]
    if changed:
        out.print(_table(changed))
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


def _table(layers: list[LayerChannels]) -> Table:
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
