from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import pytest

from st3fx.bench.bench_result import Ratio
from st3fx.report.chart import (
    HUES,
    Axis,
    BarChart,
    Chart,
    Histogram,
    LineChart,
    Series,
    make_scale,
)
from st3fx.report.charts import (
    MOST_POINTS,
    best,
    label,
    latency_chart,
    latency_table,
    macs_chart,
    sparsity_chart,
    training_charts,
    weights_chart,
)
from st3fx.report.facts import ModelFacts, TrainingFacts
from st3fx.report.png import run_picture, to_png
from st3fx.report.svg import draw
from st3fx.training.evaluate import Scores
from st3fx.training.report import EvalRow, TrainResult, TrainRow
from st3fx.training.settings import Settings
from tests.report.conftest import bench_result
from tests.report.made import block_names, made_facts


def step(number: int, **values: Any) -> dict[str, Any]:
    row = TrainRow(number, number / 10, 2.0, 0.4, 0.1, 0.5, 0.5, 0.05, 200.0)
    return {**row.to_dict(), **values}


def evaluation(number: int, **values: Any) -> dict[str, Any]:
    row = EvalRow(10 * number, number, 1.0, 0.6, 0.98, 0.5, False, False, ())
    return {**row.to_dict(), **values}


def run(*rows: dict[str, Any]) -> dict[str, LineChart]:
    facts = TrainingFacts(Settings(spec="m.py"), rows)
    return {chart.key: chart for chart in training_charts(facts)}


def test_curves_hold_what_the_log_says() -> None:
    charts = run(step(5), evaluation(1), step(15, accuracy=0.7), evaluation(2, top1=0.8))
    assert list(charts) == ["accuracy", "sparsity", "loss", "threshold", "learning-rate", "rate"]
    training, tests = charts["accuracy"].series
    assert list(training.points) == [(0.5, 40.0), (1.5, 70.0)]
    assert list(tests.points) == [(1, 60.0), (2, 80.0)]
    assert charts["accuracy"].alt == (
        "Top-1 accuracy, % over epochs: training from 40.0 to 70.0 %; test from 60.0 to 80.0 %"
    )
    assert [series.name for series in charts["sparsity"].series] == ["schedule", "measured"]


def test_learned_thresholds_have_neither_schedule_nor_threshold() -> None:
    charts = run(step(5, wanted=None, threshold=None))
    assert "threshold" not in charts
    assert [series.name for series in charts["sparsity"].series] == ["measured"]
    assert [series.name for series in charts["accuracy"].series] == ["training"]


def test_a_long_log_is_thinned_and_keeps_its_last_row() -> None:
    charts = run(*(step(k, lr=k) for k in range(5001)))
    points = list(charts["learning-rate"].series[0].points)
    assert len(points) <= MOST_POINTS
    assert points[-1] == (500.0, 5000.0)
    assert len(draw(charts["loss"])) < 60_000


@pytest.mark.parametrize(("losses", "log"), [((8.0, 0.1), True), ((2.0, 0.5), False)])
def test_a_loss_over_decades_is_logarithmic(losses: tuple[float, ...], log: bool) -> None:
    charts = run(*(step(k, loss=loss) for k, loss in enumerate(losses)))
    assert charts["loss"].y.log is log


def model(count: int) -> ModelFacts:
    found = made_facts(block_names(count)).model
    assert found is not None
    return found


def test_bars_are_layers_or_blocks_and_sum_up() -> None:
    few, many = model(6), model(500)
    chart = sparsity_chart(few.zeros, few.sparsity)
    assert [bar.label for bar in chart.bars] == block_names(6)
    assert chart.bars[0].value == pytest.approx(100 * (1 - 100 / 576))
    assert chart.line == (100 * few.sparsity, "all sites")
    macs = macs_chart(many.flops["exact"])
    assert [bar.label for bar in macs.bars] == [f"stages.{k}.blocks" for k in range(6)]
    assert sum(bar.value for bar in macs.bars) == 500 * 6400
    assert sum(bar.whole or 0 for bar in macs.bars) == 500 * 36864
    assert macs.bars[0].tip.startswith("stages.0.blocks: 90 layers\n576,000 of 3,317,760 MACs")


def test_the_histogram_names_its_threshold() -> None:
    chart = weights_chart(model(3).spread)
    assert chart.lines == (-0.5, 0.5)
    assert chart.line_name == "threshold ±0.500"
    dense = dataclasses.replace(model(3).spread, threshold=None)
    assert weights_chart(dense).lines == ()


def test_latency_compares_with_the_baseline_of_the_same_batch() -> None:
    bench = bench_result()
    chart = latency_chart(bench)
    assert [bar.label for bar in chart.bars] == [
        "dense, batch 1", "folded, batch 1", "dense, batch 8", "folded, batch 8",
    ]  # fmt: skip
    assert [bar.role for bar in chart.bars] == ["quiet", "main", "quiet", "main"]
    assert chart.bars[1].spread == (1.6, 1.2 * 1.6)
    found = best(bench)
    assert found is not None
    assert [label(row, bench) for row in found] == ["folded, batch 1", "dense, batch 1"]
    assert best(dataclasses.replace(bench, rows=bench.rows[:1])) is None


def test_a_ratio_to_dense_integers_has_a_column_where_there_is_one() -> None:
    bench = bench_result()
    names = [column.name for column in latency_table(bench).columns]
    assert "times dense INT8" not in names
    first, second, *rest = bench.rows
    second = dataclasses.replace(second, integers=True, int8_ratio=Ratio(3.0, 2.9, 3.1))
    table = latency_table(dataclasses.replace(bench, rows=(first, second, *rest)))
    place = [column.name for column in table.columns].index("times dense INT8")
    assert [row[place] for row in table.rows[:2]] == [
        "baseline",
        "3.00\N{NO-BREAK SPACE}× (2.90 to 3.10)",
    ]
    assert {len(row) for row in table.rows} == {len(names) + 1}


def all_charts() -> list[Chart]:
    facts = model(6)
    curves = run(step(5), evaluation(1), step(15, loss=0.05), evaluation(2))
    return [
        *curves.values(), sparsity_chart(facts.zeros, facts.sparsity),
        macs_chart(facts.flops["exact"]), weights_chart(facts.spread),
        latency_chart(bench_result()),
    ]  # fmt: skip


@pytest.mark.parametrize("chart", all_charts(), ids=lambda chart: chart.key)
def test_every_chart_has_a_text_and_a_mark_for_each_value(chart: Chart) -> None:
    assert isinstance(chart, LineChart | BarChart | Histogram)
    drawn = draw(chart)
    assert f'aria-label="{chart.alt}"' in drawn
    if isinstance(chart, LineChart):
        assert drawn.count('<path d="M') == len(chart.series)
    else:
        marks = chart.bars if isinstance(chart, BarChart) else chart.kept
        assert drawn.count('class="row"') == drawn.count("<title>") == len(marks)


@pytest.mark.parametrize("chart", all_charts(), ids=lambda chart: chart.key)
def test_pictures_are_png_and_the_same_each_time(chart: Chart) -> None:
    picture = to_png(chart, "st3fx report 1")
    assert picture.startswith(b"\x89PNG")
    assert b"st3fx report 1" in picture[:512]
    assert picture == to_png(chart, "st3fx report 1")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [(1.0, 1.7e308), (5e-324, 1.0), (1e-300, 9e307)])
def test_a_scale_takes_any_numbers(values: tuple[float, float], log: bool) -> None:
    scale = make_scale(Axis("loss", log=log), values, 0, 100)
    assert scale.low <= values[0]
    assert values[1] <= scale.high < math.inf
    assert all(math.isfinite(mark) for mark in scale.ticks)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [(), (step(5), evaluation(1), step(15), evaluation(2))])
def test_the_picture_of_a_run_is_png_whatever_its_log_has(rows: tuple[dict[str, Any], ...]) -> None:
    names = block_names(100)
    result = TrainResult(
        "costs$5$", None, 20, 1.0, Scores(1.0, 0.6, None, 9), (0.7, 1), None, 0.5, 0.5,
        dict.fromkeys(names, 0.5), (),
    )  # fmt: skip
    facts = TrainingFacts(Settings(spec="m.py"), rows)
    picture = run_picture(result, facts, dict.fromkeys(names, 10), "st3fx train 1")
    assert picture.startswith(b"\x89PNG")
    assert picture == run_picture(result, facts, dict.fromkeys(names, 10), "st3fx train 1")


def many_lines(count: int) -> LineChart:
    lines = tuple(
        Series(f"runs/cost $x$ <b> {k}", ((0, k), (1, k + 1)), hue=k, dots=True)
        for k in range(count)
    )
    return LineChart("many", "Many", "many lines", Axis("epoch"), Axis("value"), lines)


def legend_places(text: str) -> list[tuple[float, int]]:
    found = re.findall(r'<g transform="translate\(([\d.]+) (\d+)\)">', text)
    return [(float(x), int(y)) for x, y in found]


def test_lines_of_many_things_have_colours_of_their_own_and_names_find_room() -> None:
    few, many = draw(many_lines(2)), draw(many_lines(2 * HUES + 1))
    styles = re.findall(r'<path d="[^"]*" class="line (main [^"]*)"', many)
    assert len(set(styles)) == len(styles) == 2 * HUES + 1
    assert styles[HUES] == "main hue1 dash1"
    places = legend_places(many)
    assert len(places) == len(set(places)) == 2 * HUES + 1
    lines = sorted({y for _, y in places})
    assert {below - above for above, below in itertools.pairwise(lines)} == {17}
    tall, short = (int(re.findall(r'viewBox="0 0 400 (\d+)', text)[0]) for text in (many, few))
    assert {y for _, y in legend_places(few)} == {lines[0]}
    assert tall == short + 17 * (len(lines) - 1)
    assert "&lt;b&gt;" in many
    assert to_png(many_lines(HUES + 1), "a test").startswith(b"\x89PNG")
