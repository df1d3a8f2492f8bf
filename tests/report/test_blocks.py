"""What a report shows of a model that is pruned in blocks."""

from __future__ import annotations

import dataclasses

import pytest

from st3fx.report.charts import blocks_chart
from st3fx.report.facts import Facts
from st3fx.report.model_sections import site_table, sites, zeros
from st3fx.report.section import Table
from tests.report.made import made_facts


def pruned_in_blocks() -> Facts:
    facts = made_facts(["a.weight", "b.weight"])
    assert facts.model is not None
    fills = {"a.weight": (119, 0, 0, 0, 25), "b.weight": (114, 10, 0, 0, 20)}
    rows = {
        name: dataclasses.replace(row, block_fill=fills[name], block_zeros=30 * (name[0] == "b"))
        for name, row in facts.model.flops["exact"].by_layer.items()
    }
    report = dataclasses.replace(facts.model.flops["exact"], by_layer=rows, block=4)
    layers = tuple(
        dataclasses.replace(layer, flops=rows[layer.site.name]) for layer in facts.model.layers
    )
    plan = dataclasses.replace(facts.model.plan, granularity="block:4")
    model = dataclasses.replace(facts.model, flops={"exact": report}, layers=layers, plan=plan)
    return dataclasses.replace(facts, model=model)


def test_the_chart_has_a_bar_for_each_number_of_weights() -> None:
    facts = pruned_in_blocks()
    assert facts.model is not None
    chart = blocks_chart(facts.model.flops["exact"])
    assert chart.title == "Blocks of 4 consecutive inputs, %"
    assert [bar.label for bar in chart.bars] == [f"{k} left" for k in range(5)]
    wanted = [100 * n / 288 for n in (233, 10, 0, 0, 45)]
    assert [bar.value for bar in chart.bars] == pytest.approx(wanted)
    assert chart.bars[1].tip == "10 of 288 blocks have 1 weight left"


def test_the_section_and_the_table_say_what_is_left() -> None:
    facts = pruned_in_blocks()
    assert facts.model is not None
    section = zeros(facts)
    assert [chart.key for chart in section.charts] == ["layer-sparsity", "weights", "blocks"]
    assert (
        "They are pruned as block:4: 55 of 288 blocks of 4 consecutive inputs are left, and "
        "kernels that take blocks whole multiply 20.0\N{NO-BREAK SPACE}% of the weights."
    ) in section.lead
    table = site_table(facts.model.layers, 1, {})
    assert [column.name for column in table.columns][-2:] == ["blocks left", "zeros in these"]
    assert [cell.value for cell in table.rows[1][-2:]] == [30 / 144, 30 / 130]  # type: ignore[attr-defined]


def test_own_targets_stand_beside_the_zeros() -> None:
    facts = pruned_in_blocks()
    assert facts.model is not None
    names = [layer.site.name for layer in facts.model.layers]
    plan = dataclasses.replace(facts.model.plan, targets=((names[1], 0.25),))
    model = dataclasses.replace(facts.model, plan=plan)
    section = sites(dataclasses.replace(facts, model=model))
    found = model.layers[1].sparsity
    off = 100 * abs(found - 0.25)
    assert section.lead.endswith(
        f"1 site has a target of its own: held to {off:.2f} points "
        f"({names[1]}: {found:.2%} of 25.00%)."
    )
    (table,) = section.rest
    assert isinstance(table, Table)
    place = [column.name for column in table.columns].index("target")
    assert table.columns[place - 1].name == "zeros"
    assert [row[place].value for row in table.rows[:2]] == [-1, 0.25]  # type: ignore[attr-defined]


def test_without_blocks_there_is_nothing_of_them() -> None:
    facts = made_facts(["a.weight"])
    assert facts.model is not None
    assert [chart.key for chart in zeros(facts).charts] == ["layer-sparsity", "weights"]
    names = [column.name for column in site_table(facts.model.layers, 1, {}).columns]
    assert "blocks left" not in names
