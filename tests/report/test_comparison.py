from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from st3fx.cli import main
from st3fx.commands.compare import compare, gather
from st3fx.errors import ReportError
from st3fx.plan.sites import Site
from st3fx.report.chart import LineChart
from st3fx.report.comparison import Compared, Comparison, labels
from st3fx.report.comparison_sections import curves, headline, make_sections, remarks
from st3fx.report.facts import Facts, TrainingFacts
from st3fx.report.page import make_document
from st3fx.training.settings import Settings, read_run, to_toml
from tests.models import TINY, write
from tests.report.conftest import bench_result
from tests.report.made import made_facts
from tests.report.test_charts import evaluation, step
from tests.report.test_page import Elements


@pytest.fixture
def two(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and the same with another learning rate, stopped in its second epoch."""
    first = Path(shutil.copytree(run, tmp_path / "a" / "<b>run"))
    second = Path(shutil.copytree(run, tmp_path / "b" / "<b>run"))
    other = dataclasses.replace(read_run(second / "settings.toml"), lr=0.2)
    (second / "settings.toml").write_text(to_toml(other))
    shutil.rmtree(second / "model.st3fx")
    (second / "bench.json").unlink()
    lines = (second / "metrics.jsonl").read_text().splitlines()
    (second / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n" + '{"kind": "tr')
    return first, second


def test_runs_are_read_as_far_as_they_can_be(two: tuple[Path, Path], tmp_path: Path) -> None:
    _, second = two
    stages: list[str] = []
    result = compare(two, tmp_path / "c.html", progress=stages.append)
    assert stages == ["reading a/<b>run", "reading b/<b>run", "draw"]
    whole, half = result.comparison.outcomes
    assert (whole.run, half.run) == ("a/<b>run", "b/<b>run")
    assert whole.notes == ()
    assert whole.sparsity == pytest.approx(0.8, abs=1e-3)
    assert whole.latency is not None
    assert (whole.latency.ms, whole.latency.ratio, whole.latency.cpu) == (1.6, 1.25, "a processor")
    assert whole.macs is not None
    assert whole.dense_macs is not None
    assert 0 < whole.macs < whole.dense_macs
    assert (half.macs, half.bytes, half.latency) == (None, None, None)
    assert half.top1 is not None
    assert len(half.notes) == 2
    assert "is not whole, as after a kill" in half.notes[0]
    assert half.notes[1].startswith("it is not finished: ")
    assert f"st3fx train --resume '{second}' goes on" in half.notes[1]
    assert result.comparison.differences == {"lr": {whole.run: 0.1, half.run: 0.2}}
    text = result.path.read_text(encoding="utf-8")
    elements = Elements(text)
    assert "b" not in elements.names
    assert "a/&lt;b&gt;run" in text
    assert all(link.startswith("#") for link in elements.links)
    assert "default-src 'none'" in text
    assert compare(two, tmp_path / "c.html").path.read_text(encoding="utf-8") == text
    data = json.loads(json.dumps(result.to_dict()))
    assert [one["run"] for one in data["runs"]] == [whole.run, half.run]
    assert data["layers"] == []


def test_layers_are_matched_by_name_and_shape(run: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(run / "model.st3fx", tmp_path / "same.st3fx"))
    found = gather([run, same], "epoch", lambda stage: None)
    assert [row.name for row in found.layers] == ["stem.weight", "head.weight"]
    assert all(row.spread == 0 for row in found.layers)
    layer = found.layers[0].to_dict()["runs"]["same.st3fx"]
    assert layer["weights"] == 100
    assert layer["sparsity"] == pytest.approx(1 - layer["nonzeros"] / 100)
    assert 0 < layer["macs"] < layer["dense_macs"]
    assert found.outcomes[1].top1 is None
    other = made_runs(3, [])
    assert other.layers == ()
    sections = {section.key: section for section in make_sections(other)}
    assert "Fewer than two of the runs" in sections["layers"].missing
    strange = made_facts(["stem.weight"])
    pair = (Compared("made", strange), *found.runs[:1])
    missing = {s.key: s.missing for s in make_sections(Comparison(pair, {}))}["layers"]
    assert "their models are others" in missing


def made_runs(count: int, rows: list[list[dict[str, object]]], **settings: object) -> Comparison:
    runs = []
    for index in range(count):
        training = TrainingFacts(
            Settings(spec="m.py", **settings),  # type: ignore[arg-type]
            tuple(rows[index]) if rows else (),
        )
        facts = Facts("m", Path(f"r{index}"), True, None, training, None, ())
        runs.append(Compared(f"r{index}", facts))
    return Comparison(tuple(runs), {})


def test_curves_have_a_colour_for_each_run_and_the_axis_that_is_asked_for() -> None:
    rows = [[step(5), evaluation(1), step(15)], [], [step(7, sparsity=0.25), evaluation(2)]]
    found = made_runs(3, rows)
    charts = {chart.key: chart for chart in curves(found)}
    assert list(charts) == [
        "accuracy", "test-loss", "training-loss", "sparsity", "threshold", "learning-rate",
    ]  # fmt: skip
    assert [(s.name, s.hue) for s in charts["sparsity"].series] == [("r0", 0), ("r2", 2)]
    assert list(charts["sparsity"].series[0].points) == [(0.5, 50.0), (1.5, 50.0)]
    assert list(charts["sparsity"].series[1].points) == [(0.7, 25.0)]
    assert "r2 from 25.0 to 25.0 %" in charts["sparsity"].alt
    by_step = {c.key: c for c in curves(dataclasses.replace(found, over="step"))}
    assert list(by_step["accuracy"].series[1].points) == [(20, 60.0)]
    assert by_step["accuracy"].x.label == "step"
    assert curves(made_runs(2, [[], []])) == []


def test_numbers_that_do_not_belong_together_are_said() -> None:
    rows = [[evaluation(1)], [evaluation(1, top1=0.9)]]
    found = made_runs(2, rows)
    assert remarks(found) == []
    assert headline(found)[0] == ("best accuracy", "90.0\u00a0%", "r1")
    (first, second) = found.runs
    training = TrainingFacts(Settings(spec="m.py", data="cifar10"), tuple(rows[1]))
    other = dataclasses.replace(second.facts, training=training, bench=bench_result())
    bench = dataclasses.replace(bench_result(), environment={"cpu": "another"})
    runs = (
        dataclasses.replace(first, facts=dataclasses.replace(first.facts, bench=bench)),
        dataclasses.replace(second, facts=other),
    )
    mixed = Comparison(runs, {})
    said = remarks(mixed)
    assert "different data (cifar10, fashion-mnist-mini)" in said[0]
    assert "different processors" in said[1]
    assert "best accuracy" not in {name for name, _, _ in headline(mixed)}
    assert "lowest latency" not in {name for name, _, _ in headline(mixed)}


def test_accuracy_over_sparsity_has_a_dot_for_each_run() -> None:
    rows = [[evaluation(1)], [evaluation(1, top1=0.9, sparsity=0.75)]]
    results = make_sections(made_runs(2, rows))[0]
    chart = results.charts[0]
    assert isinstance(chart, LineChart)
    assert [series.points for series in chart.series] == [((50.0, 60.0),), ((75.0, 90.0),)]


def test_names_of_anybody_are_escaped() -> None:
    odd = "<script>alert(1)</script>\x1b[2J"
    runs = tuple(
        dataclasses.replace(run, label=f"{odd}{k}", notes=(odd,))
        for k, run in enumerate(made_runs(2, [[evaluation(1)], [step(3)]]).runs)
    )
    found = Comparison(runs, {odd: odd})
    text = make_document(
        kind="", title=odd, name=odd, about=odd, headline=headline(found),
        sections=make_sections(found), generator="x",
    )  # fmt: skip
    assert Elements(text).names.count("script") == 1
    assert "\x1b" not in text


def test_labels_are_as_short_as_they_can_be() -> None:
    paths = [Path(text) for text in ("/a/run", "/b/run", "/b/other", "/c/b/run")]
    assert labels(paths) == ["a/run", "/b/run", "other", "c/b/run"]


def test_a_site_of_another_shape_is_another_layer() -> None:
    facts = made_facts(["conv.weight"])
    assert facts.model is not None
    layer = facts.model.layers[0]
    site: Site = dataclasses.replace(layer.site, shape=(8, 8, 1, 1))
    model = dataclasses.replace(facts.model, layers=(dataclasses.replace(layer, site=site),))
    runs = (Compared("a", facts), Compared("b", dataclasses.replace(facts, model=model)))
    assert Comparison(runs, {}).layers == ()
    assert len(Comparison((runs[0], Compared("c", facts)), {}).layers) == 1


def test_what_is_wrong_is_one_line(run: Path, tmp_path: Path) -> None:
    def line(*words: object) -> str:
        result = CliRunner().invoke(main, ["compare", *map(str, words)])
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "c.html").exists()
        return result.stderr

    to = ("-o", tmp_path / "c.html")
    assert "missing argument 'RUN...'" in line(*to)
    assert "give two runs or more" in line(run, *to)
    assert "give two runs or more" in line(run, run / ".." / run.name, *to)
    assert "there is no folder" in line(run, tmp_path, "-o", tmp_path / "no" / "c.html")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "none of the 2 can be compared" in line(empty, tmp_path / "nowhere", *to)
    mine = tmp_path / "mine.html"
    mine.write_text("my notes")
    assert "exists and is no comparison" in line(run, empty, "-o", mine)
    assert mine.read_text() == "my notes"


def test_damage_is_said_and_the_rest_is_compared(run: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(run, tmp_path / name)) for name in ("log", "model", "settings")]
    with (copies[0] / "metrics.jsonl").open("a") as file:
        file.write("{half a row\n")
    (copies[0] / "bench.json").write_text("{")
    weights = copies[1] / "model.st3fx" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (copies[2] / "settings.toml").write_text("nonsense = 1\n")
    bundle = write(tmp_path, "tiny.py", TINY)
    words = ["convert", str(bundle), "-o", str(tmp_path / "tiny.st3fx")]
    assert CliRunner().invoke(main, words).exit_code == 0
    words = ["compare", *map(str, [run, *copies, tmp_path / "tiny.st3fx"])]
    result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "c.html")])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("log: its log cannot be read: ") for line in lines)
    assert any(line.startswith("log: its benchmark cannot be read: ") for line in lines)
    assert any("model: its layers are not known: the bundle is truncated" in one for one in lines)
    assert any("settings is left out: " in line and "unknown setting" in line for line in lines)
    assert lines[-1].startswith(f"wrote {tmp_path}/c.html (")
    data = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "c.html"), "--json"])
    found = json.loads(data.stdout)
    assert [one["run"] for one in found["runs"]] == ["run", "log", "model", "tiny.st3fx"]
    assert list(found["left_out"]) == [str(copies[2])]


@pytest.mark.slow
def test_pictures_are_those_of_the_page(two: tuple[Path, Path], tmp_path: Path) -> None:
    result = compare(two, tmp_path / "c.html", pictures=tmp_path / "png")
    assert {path.stem for path in result.pictures} == {
        "accuracy", "test-loss", "training-loss", "sparsity", "threshold", "learning-rate",
        "accuracy-over-sparsity", "latency",
    }  # fmt: skip
    with pytest.raises(ReportError, match="is a file: name a folder"):
        compare(two, tmp_path / "c.html", pictures=result.path)
