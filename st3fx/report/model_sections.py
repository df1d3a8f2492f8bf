"""The sections about the model: where the zeros are, what is left to compute, who feeds whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from st3fx.errors import quoted
from st3fx.flops.flops_report import FlopsReport, LayerFlops
from st3fx.methods.targets import held
from st3fx.report import markup
from st3fx.report.chart import Chart
from st3fx.report.charts import blocks_chart, macs_chart, sparsity_chart, weights_chart
from st3fx.report.facts import Facts, Layer, ModelFacts
from st3fx.report.flow import flow_chart
from st3fx.report.markup import join, tag
from st3fx.report.section import Block, Cell, Column, Items, Note, Section, Table, Terms
from st3fx.report.svg import draw_small

_COLUMNS = (
    Column("#", number=True), Column("site", width=24), Column("op"), Column("shape", number=True),
    Column("weights", number=True), Column("zeros", number=True),
    Column("latent weights", sort=False), Column("threshold", number=True),
    Column("dense MACs", number=True), Column("MACs left", number=True),
    Column("of all", number=True),
)  # fmt: skip
_DEAD = (Column("dead out", number=True), Column("dead in", number=True))
"""Shown where there are any."""
_BLOCKS = (Column("blocks left", number=True), Column("zeros in these", number=True))
"""Shown where blocks were counted."""


_TARGET, _OWN = (Column("target", number=True),), 6
"""Shown behind the zeros where any site has a target of its own."""


def site_table(layers: Sequence[Layer], macs: int, own: Mapping[str, float]) -> Table:
    """A line for each site.

    Args:
        layers: The sites.
        macs: Left in the whole model: what shares are taken of.
        own: Targets of single sites, by name.
    """
    counted = [layer.flops for layer in layers if layer.flops]
    dead = any(row.dead_outputs or row.dead_inputs for row in counted)
    blocks = any(row.block_fill for row in counted)
    columns = _COLUMNS[:_OWN] + (_TARGET if own else ()) + _COLUMNS[_OWN:]
    columns += (_BLOCKS if blocks else ()) + (_DEAD if dead else ())
    cells = [_row(index, layer, macs) for index, layer in enumerate(layers, start=1)]
    if own:
        for row, layer in zip(cells, layers, strict=True):
            row.insert(_OWN, _target_cell(own.get(layer.site.name)))
    rows = [
        [
            *row,
            *(_block_cells(layer.flops) if blocks else ()),
            *(_dead_cells(layer.flops) if dead else ()),
        ]
        for row, layer in zip(cells, layers, strict=True)
    ]
    return Table(columns, rows, "sites")


def _target_cell(target: float | None) -> Cell:
    return Cell("–", -1) if target is None else Cell(markup.percent(target), target)


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
        Cell(markup.shape(site.shape), site.numel),
        Cell(f"{site.numel:,}", site.numel),
        Cell(markup.percent(layer.sparsity), layer.sparsity),
        Cell(draw_small(counts.kept, counts.pruned, said)),
        Cell("–", -1) if threshold is None else Cell(markup.three(threshold), threshold),
        *(_costs(flops, macs) if flops else [Cell("–", -1)] * 3),
    ]


def _costs(flops: LayerFlops, macs: int) -> list[Cell]:
    share = flops.sparse_macs / macs if macs else 0.0
    return [
        Cell(markup.count(flops.dense_macs), flops.dense_macs),
        Cell(markup.count(flops.sparse_macs), flops.sparse_macs),
        Cell(markup.percent(share), share),
    ]


def _block_cells(flops: LayerFlops | None) -> list[Cell]:
    if flops is None or not flops.block_fill:
        return [Cell("–", -1)] * 2
    left, inside = flops.blocks_left / flops.blocks, flops.nonzeros + flops.block_zeros
    zeros = flops.block_zeros / inside if inside else 0.0
    return [Cell(markup.percent(left), left), Cell(markup.percent(zeros), zeros)]


def _dead_cells(flops: LayerFlops | None) -> list[Cell]:
    if flops is None:
        return [Cell("–", -1)] * 2
    return [
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


CONVENTIONS = {
    "exact": "each nonzero weight once for every output where it meets a real input value",
    "st3": "convolutions and products with weights, padding included",
    "str": "as st3, and average pooling",
}
"""What counts as a MAC, in words."""


def zeros(facts: Facts) -> Section:
    """Sparsity of each layer, and the weights' values around the threshold."""
    title, model = "Where the zeros are", facts.model
    if model is None:
        return Section("zeros", title, missing=no_model(facts))
    pruned = model.plan.numel - model.nonzeros
    lead = (
        f"{pruned:,} of {markup.plural(model.plan.numel, 'weight')} in "
        f"{markup.plural(len(model.layers), 'site')} are zero, "
        f"{markup.percent(model.sparsity, 2)}. "
        f"These sites hold {markup.percent(model.plan.numel / model.plan.total_parameters)} of the "
        f"model's {model.plan.total_parameters:,} parameters."
    )
    if not pruned:
        lead = f"Nothing is pruned yet: the {model.plan.numel:,} weights of the sites are dense."
    charts: tuple[Chart, ...] = (
        sparsity_chart(model.zeros, model.sparsity), weights_chart(model.spread)
    )  # fmt: skip
    exact = model.flops.get("exact")
    if exact is not None and exact.blocks:
        lead += (
            f" They are pruned as {model.plan.granularity}: {exact.blocks_left:,} of "
            f"{exact.blocks:,} blocks of {exact.block} consecutive inputs are left, and kernels "
            f"that take blocks whole multiply {markup.percent(exact.block_share)} of the weights."
        )
        charts += (blocks_chart(exact),)
    return Section("zeros", title, lead, charts, _remarks(model), _skipped(model))


def compute(facts: Facts) -> Section:
    """Multiplications by layer and by convention."""
    title, model = "What is left to compute", facts.model
    if model is None:
        return Section("compute", title, missing=no_model(facts))
    if not model.flops:
        return Section("compute", title, missing=f"Not counted: {model.uncounted}")
    exact = model.flops["exact"]
    inputs = ", ".join(markup.shape(shape) for shape in exact.inputs)
    lead = f"One call with {inputs} takes {exact.dense_macs:,} multiplications when it is dense"
    if exact.sparse_macs < exact.dense_macs:
        left = exact.sparse_macs / exact.dense_macs
        bound = "" if exact.mac_bound == float("inf") else (
            f" If time went by multiplications it would run {markup.times(exact.mac_bound)} as "
            "fast, "
            f"by all operations {markup.times(exact.flop_bound)}: no runtime can be faster than "
            "that."
        )  # fmt: skip
        lead += (
            f"; without the zeros {exact.sparse_macs:,} are left ({markup.percent(left)}).{bound}"
        )
    else:
        lead += "."
    return Section("compute", title, lead, (macs_chart(exact),), tuple(_tables(model)))


def sites(facts: Facts) -> Section:
    """The table."""
    model = facts.model
    if model is None:
        return Section("sites", "Every site", missing=no_model(facts))
    macs = model.flops["exact"].sparse_macs if model.flops else 0
    lead = "A head sorts the table, a second time the other way round."
    own = dict(model.plan.targets)
    if own:
        lead += f" {_held(model.layers, own)}"
    return Section("sites", "Every site", lead, rest=(site_table(model.layers, macs, own),))


def _held(layers: Sequence[Layer], own: Mapping[str, float]) -> str:
    """How near the sites with targets of their own have come to these, in a sentence."""
    have = "site has a target of its own" if len(own) == 1 else "sites have targets of their own"
    zeros = {layer.site.name: layer.sparsity for layer in layers}
    return f"{len(own)} {have}: {held(own, zeros)}."


def dataflow(facts: Facts) -> Section:
    """The picture."""
    title, model = "Dataflow", facts.model
    if model is None:
        return Section("dataflow", title, missing=no_model(facts))
    chart = flow_chart(model.flow, {layer.site.name: layer.sparsity for layer in model.layers})
    lead = (
        "From top to bottom as the model runs: filled dots are sites, rings are inputs, outputs "
        "and joins (+ addition, × product, ∥ concatenation), a line beside the main one is a skip "
        "connection."
    )
    outside = [row.name for row in chart.rows if row.kind == "site" and row.name not in
               {name for edge in model.flow.edges for name in edge}]  # fmt: skip
    notes: tuple[Block, ...] = ()
    if outside:
        are = "site is" if len(outside) == 1 else "sites are"
        notes = (Note(f"{len(outside)} {are} in modules that keep their own forward and stand "
                      f"alone: {markup.listed(outside)}."),)  # fmt: skip
    return Section("dataflow", title, lead, (chart,), rest=notes)


def no_model(facts: Facts) -> str:
    """What gives the sections that need a converted model."""
    if facts.refused:
        return f"Not known: {facts.refused}."
    return (
        "The run has not ended, and its model is not written yet: "
        f"`st3fx train --resume {quoted(facts.source)}` goes on with it."
    )


def _remarks(model: ModelFacts) -> tuple[Block, ...]:
    """What a reader should know about single layers, one line each."""
    lines = [f"{layer.site.name} has no weight left" for layer in model.layers
             if not layer.nonzeros]  # fmt: skip
    rows = [layer.flops for layer in model.layers if layer.flops]
    outputs, inputs = sum(r.dead_outputs for r in rows), sum(r.dead_inputs for r in rows)
    if outputs:
        have = "has" if outputs == 1 else "have"
        lines.append(f"{markup.plural(outputs, 'output channel')} {have} a filter of zeros alone")
    if inputs:
        are = "is" if inputs == 1 else "are"
        lines.append(f"{markup.plural(inputs, 'input channel')} {are} read by no filter")
    if model.spread.beyond:
        weights = markup.plural(model.spread.beyond, "latent weight")
        lines.append(f"the histogram leaves out {weights} beyond its ends")
    return (Items(lines),) if lines else ()


def _skipped(model: ModelFacts) -> tuple[Block, ...]:
    if not model.plan.skipped:
        return ()
    columns = [Column("stays dense"), Column("op"), Column("shape"),
               Column("weights", number=True), Column("why")]  # fmt: skip
    rows = [(s.name, s.op, markup.shape(s.shape), f"{s.numel:,}", s.reason)
            for s in model.plan.skipped]  # fmt: skip
    return (Table(columns, rows),)


def _tables(model: ModelFacts) -> Iterator[Block]:
    columns = [Column("convention"), Column("dense MACs", number=True),
               Column("MACs left", number=True), Column("share", number=True)]  # fmt: skip
    rows = [
        (name, f"{r.dense_macs:,}", f"{r.sparse_macs:,}",
         markup.percent(r.sparse_macs / r.dense_macs) if r.dense_macs else "–")
        for name, r in model.flops.items()
    ]  # fmt: skip
    yield Table(columns, rows)
    yield Terms([(name, CONVENTIONS[name]) for name in model.flops])
    if model.flops["exact"].by_op:
        yield _others(model.flops["exact"])
    unknown = sorted({name for report in model.flops.values() for name in report.unknown})
    if unknown:
        yield Note("No rule says what these operators cost, and they are in no total: "
                   f"{markup.listed(unknown)}.")  # fmt: skip


def _others(report: FlopsReport) -> Table:
    """Operations that are no MACs."""
    columns = [Column("other operations"), Column("calls", number=True),
               Column("operations", number=True)]  # fmt: skip
    ops = sorted(report.by_op.values(), key=lambda op: (-op.flops, op.op))
    return Table(columns, [(op.op, f"{op.calls:,}", markup.count(op.flops)) for op in ops])
