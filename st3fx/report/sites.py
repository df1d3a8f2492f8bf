"""The table of sites."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.flops.report import LayerFlops
from st3fx.report import text
from st3fx.report.facts import Layer
from st3fx.report.markup import Markup, join, tag
from st3fx.report.svg_histogram import draw_small
from st3fx.report.table import Cell, Column, sortable_table

_COLUMNS = (
    Column("#", number=True), Column("site", width=24), Column("op"), Column("shape", number=True),
    Column("weights", number=True), Column("zeros", number=True),
    Column("latent weights", sort=False), Column("threshold", number=True),
    Column("dense MACs", number=True), Column("MACs left", number=True),
    Column("of all", number=True),
)  # fmt: skip
_DEAD = (Column("dead out", number=True), Column("dead in", number=True))
"""Shown where there are any."""


def site_table(layers: Sequence[Layer], macs: int) -> Markup:
    """A line for each site.

    Args:
        layers: The sites.
        macs: Left in the whole model: what shares are taken of.
    """
    counted = [layer.flops for layer in layers if layer.flops]
    dead = any(row.dead_outputs or row.dead_inputs for row in counted)
    columns = _COLUMNS + _DEAD if dead else _COLUMNS
    rows = [_row(index, layer, macs)[: len(columns)] for index, layer in enumerate(layers, start=1)]
    return sortable_table(columns, rows, "sites")


def _row(index: int, layer: Layer, macs: int) -> list[Cell]:
    site, flops = layer.site, layer.flops
    pruned = site.numel - layer.nonzeros
    counts = layer.counts
    said = f"{site.name}: {pruned:,} of {site.numel:,} latent weights are pruned"
    threshold = layer.threshold
    return [
        Cell(index),
        Cell(_breakable(site.name), site.name),
        Cell(site.op),
        Cell(text.shape(site.shape), site.numel),
        Cell(f"{site.numel:,}", site.numel),
        Cell(text.percent(layer.sparsity), layer.sparsity),
        Cell(draw_small(counts.kept, counts.pruned, said)),
        Cell("–", -1) if threshold is None else Cell(text.three(threshold), threshold),
        *(_costs(flops, macs) if flops else [Cell("–", -1)] * 5),
    ]


def _costs(flops: LayerFlops, macs: int) -> list[Cell]:
    share = flops.sparse_macs / macs if macs else 0.0
    return [
        Cell(text.count(flops.dense_macs), flops.dense_macs),
        Cell(text.count(flops.sparse_macs), flops.sparse_macs),
        Cell(text.percent(share), share),
        Cell(_part(flops.dead_outputs, flops.outputs), flops.dead_outputs),
        Cell(_part(flops.dead_inputs, flops.inputs), flops.dead_inputs),
    ]


def _part(dead: int, whole: int) -> str:
    return f"{dead:,} of {whole:,}" if dead else "0"


def _breakable(name: str) -> Markup:
    """A name that may be broken after its dots."""
    parts = name.split(".")
    pieces: list[object] = [parts[0]]
    for part in parts[1:]:
        pieces += [".", tag("wbr"), part]
    return join(pieces)
