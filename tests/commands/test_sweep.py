"""One trained model at many sparsities: what is scored, counted, measured, picked and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import st3fx
from st3fx import methods
from st3fx.bench.bench_result import BenchRow, Ratio
from st3fx.bench.variant import BenchSettings
from st3fx.cli.app import main
from st3fx.commands.convert import convert_spec, save_bundle
from st3fx.commands.scorer import require_reachable
from st3fx.commands.sweep import with_speeds
from st3fx.commands.train import train_spec
from st3fx.errors import SweepError, TrainError
from st3fx.files.bundle import read_bundle
from st3fx.files.manifest import Recipe
from st3fx.files.ours import BUNDLE
from st3fx.methods.base import ScheduledMethod
from st3fx.report.sweep_result import Condition, SweepResult, SweepRow, check_sparsities
from tests.models import write
from tests.training.runs import NET, folder_of, rows, settings

LOADERS = """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    def data(size, seed):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(size) % 10
        noise = torch.randn(size, 1, 28, 28, generator=generator)
        return TensorDataset(noise + targets.view(-1, 1, 1, 1) / 5, targets)

    def make_loaders(batch_size, seed):
        return (DataLoader(data(400, 0), batch_size=40, shuffle=True),
                DataLoader(data(TEST, 1), batch_size=50))
"""


def made_row(sparsity: float, top1: float, macs: int) -> SweepRow:
    return SweepRow(sparsity, sparsity == 0.8, sparsity, 1, top1, None, 0.1, macs, 100)


MADE = SweepResult(
    "n", Path("n"), "n", "st3", "d", 10, "weights", None, 0, 10, 1000, 100,
    (made_row(0.5, 0.91, 900), made_row(0.8, 0.9, 400), made_row(0.9, 0.88, 200)),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    write(folder, "loaders.py", LOADERS.replace("TEST", "200"))
    one = settings(
        folder, data=f"{folder}/loaders.py", sparsity=0.8, draw_sparsity=(0.4, 0.9), epochs=2,
        ramp=(0.0, 0.5),
    )  # fmt: skip
    train_spec(one)
    assert rows(one)[-1]["kind"] == "eval"
    return folder_of(one).path


@pytest.fixture(scope="module")
def swept(run: Path) -> SweepResult:
    return st3fx.sweep(run, (0.9, 0.4, 0.0), bench=False)


def test_the_runs_own_sparsity_is_what_training_reported(run: Path, swept: SweepResult) -> None:
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in log if row["kind"] == "eval"][-1]
    own = swept.own
    assert own.sparsity == 0.8
    assert float(f"{own.loss:.6g}") == last["loss"]
    assert (own.top1, own.top5) == (last["top1"], last["top5"])
    assert float(f"{own.zeros:.6g}") == last["sparsity"]
    assert swept.calibration == 2
    # The same weights without new statistics are scored otherwise, but at the own sparsity.
    kept = st3fx.sweep(run, (0.4,), calibrate=0, bench=False)
    assert kept.own == own
    assert kept.rows[0].loss != swept.rows[1].loss
    assert kept.calibration == 0


def test_each_row_is_counted_exactly(run: Path, swept: SweepResult) -> None:
    assert [row.sparsity for row in swept.rows] == [0.0, 0.4, 0.8, 0.9]
    assert [row.own for row in swept.rows] == [False, False, True, False]
    assert swept.drawn == (0.4, 0.9)
    for row in swept.rows:
        model = st3fx.load_bundle(run / "model.st3fx")
        st3fx.Sparsifier(model).set_sparsity(row.sparsity)
        folded = st3fx.fold(model)
        left = sum(int(w.count_nonzero()) for w in folded.parameters() if w.dim() > 1)
        assert row.nonzeros == left
        assert row.zeros == 1 - left / swept.weights
        flops = st3fx.count_flops(folded, torch.zeros(1, 1, 28, 28))
        assert (row.macs, swept.dense_macs) == (flops.sparse_macs, flops.dense_macs)
        st3fx.save_compact(folded.state_dict(), run.parent / "one.st3w")
        assert row.bytes == (run.parent / "one.st3w").stat().st_size
    assert swept.rows[0].macs == swept.dense_macs
    assert [row.bytes for row in swept.rows] == sorted((r.bytes for r in swept.rows), reverse=True)


def test_it_is_the_same_again(run: Path, swept: SweepResult) -> None:
    again = st3fx.sweep(run, (0.0, 0.4, 0.9), bench=False)
    assert again == swept


def test_page_and_json(run: Path, swept: SweepResult) -> None:
    page = (run / "sweep.html").read_text()
    assert "Accuracy against multiplications" in page
    assert "st3fx sweep" in page[:512]
    assert "40\u00a0%" in page
    said = json.loads((run / "sweep.json").read_text())
    assert said["format"] == "st3fx-sweep"
    assert said["rows"][2]["own"] is True
    assert said["rows"][2]["drop"] == 0
    assert said["rows"][3]["macs"] == swept.rows[3].macs
    heads, *lines = swept.to_table()
    assert heads == ["sparsity", "top-1", "drop", "left", "MACs", "size"]
    assert lines[2][0] == "80\u00a0% *"


def test_picks_the_sparsest_that_holds(run: Path, tmp_path: Path) -> None:
    into = tmp_path / "small"
    result = st3fx.sweep(run, (0.4, 0.9), bench=False, pick="sparsity<0.85", into=into)
    assert result.picked is not None
    assert result.picked.sparsity == 0.8
    assert set(result.picked.files) == {"model.st3fx", "folded.safetensors", "model.st3w"}
    (into / "model.st3fx" / "notes.txt").write_text("mine" * 10_000)
    less = st3fx.sweep(run, (0.4, 0.9), bench=False, pick="sparsity<=0.5", into=into, force=True)
    assert less.picked is not None
    own = [into / "model.st3fx" / name for name in BUNDLE]
    assert less.picked.files["model.st3fx"] == sum(path.stat().st_size for path in own)
    assert (into / "model.st3fx" / "notes.txt").read_text() == "mine" * 10_000
    model = st3fx.load_bundle(into / "model.st3fx")
    sparsifier = st3fx.Sparsifier(model)
    assert sparsifier.target == 0.4
    assert sparsifier.sparsity == pytest.approx(0.4, abs=1e-3)
    folded = st3fx.fold(model).eval()
    for state in (load_file(into / "folded.safetensors"), st3fx.load_compact(into / "model.st3w")):
        for name, value in folded.state_dict().items():
            assert torch.equal(value, state[name]), name
    with pytest.raises(SweepError, match=r"small/model.st3fx exists: choose another --into"):
        st3fx.sweep(run, (0.4,), bench=False, pick="drop<1", into=into)
    # It has the statistics that it was scored with: another sweep without new ones says the same.
    first = st3fx.sweep(run, (0.4,), bench=False).rows[0]
    later = st3fx.sweep(
        into / "model.st3fx",
        (0.4,),
        bench=False,
        calibrate=0,
        data={"data": f"{run.parent}/loaders.py"},
    )
    assert later.rows[0].loss == first.loss
    assert later.rows[0].own


def test_says_when_nothing_holds(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(SweepError, match=r"no sparsity holds accuracy>101: accuracy is .* at 40"):
        st3fx.sweep(run, (0.4,), bench=False, pick="accuracy>101", into=tmp_path / "x", page=page)
    assert page.is_file()
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_measures_side_by_side_and_in_integers(run: Path, tmp_path: Path) -> None:
    result = st3fx.sweep(
        run, (0.8,), bench=BenchSettings(seconds=0.01, warmup=0.0), int8=True,
        page=tmp_path / "a.html", pictures=tmp_path / "p",
    )  # fmt: skip
    (row,) = result.rows
    assert result.dense is not None
    assert (result.dense.row, result.dense.ratio) == ("dense", None)
    assert row.speed is not None
    assert row.speed.row in ("folded", "sparse kernels")
    assert row.speed.ratio is not None
    assert row.int8_top1 == pytest.approx(row.top1, abs=0.05)
    assert row.int8_speed is not None
    assert row.int8_speed.row in ("dense INT8", "sparse INT8 kernels")
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == ["accuracy-bytes.png", "accuracy-macs.png", "accuracy-time.png"]
    heads = ["time", "x dense", "INT8 top-1", "INT8 time", "INT8 x dense"]
    assert result.to_table()[0][-5:] == heads


def measured(name: str, ms: float, **about: Any) -> BenchRow:
    ratio = None if name == "dense" else Ratio(8 / ms, 8 / ms, 8 / ms)
    return BenchRow(name, "ort", "CPU", 1, 1, ms, ms, 0.0, 1.0, ratio, None, 10, 10, 0.1, **about)


def test_each_sparsity_has_the_faster_of_its_files() -> None:
    of_integers = {"integers": True}
    found = with_speeds(
        MADE, list(MADE.rows),
        [
            measured("dense", 8), measured("50\u00a0%", 7), measured("80\u00a0%", 6),
            measured("80\u00a0%, dense INT8", 3, **of_integers),
            measured("80\u00a0%, sparse kernels", 5),
            measured("80\u00a0%, sparse INT8 kernels", 2, skips_zeros=True, **of_integers),
            measured("90\u00a0%", 4), measured("90\u00a0%, sparse kernels", 4.5),
        ],
        {},
    )  # fmt: skip
    assert [row.speed and row.speed.ms for row in found.rows] == [7, 5, 4]
    assert [row.int8_speed and row.int8_speed.ms for row in found.rows] == [None, 2, None]
    assert found.dense is not None
    assert found.dense_int8 is not None
    assert (found.dense.ms, found.dense_int8.ms) == (8, 3)
    assert Condition.parse("ms<6").pick(found).sparsity == 0.9


def test_command(run: Path, tmp_path: Path) -> None:
    out = CliRunner().invoke(
        main, ["sweep", str(run), "--sparsity", "0.4,0.8", "--no-bench", "--pick", "macs<1M",
               "--into", str(tmp_path / "small"), "-o", str(tmp_path / "page.html")],
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    assert "80\u00a0% *" in out.output
    assert "picked 80\u00a0%, the sparsest with macs<1M" in out.output
    assert f"wrote {tmp_path}/page.html and page.json" in out.output
    assert "Traceback" not in out.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sparsity", "0.5,x"], "is not a list of numbers"),
        (["--sparsity", "80,90"], "0 or more, below 1; 80 % is 0.8"),
        (["--sparsity", "1"], "sparsity 1: give shares"),
        (["--sparsity", "nan"], "sparsity nan: give shares"),
        (["--sparsity", "0.5,0.5"], "sparsities 0.5,0.5: give each once"),
        (["--pick", "fast"], "--pick 'fast': give one condition like drop<0.5, of accuracy, drop"),
        (["--pick", "drop<0.5,ms<3"], "give one condition like drop<0.5"),
        (["--pick", "drop<1e"], "is no number"),
        (["--pick", "ms<3", "--no-bench"], "--pick ms<3 needs times: leave --no-bench out"),
        (["--into", "x"], "--into is for --pick"),
        (["--threads", "1", "--no-bench"], "--threads is for"),
    ],
)  # fmt: skip
def test_wrong_lines(run: Path, words: list[str], message: str) -> None:
    out = CliRunner().invoke(main, ["sweep", str(run), *words])
    assert out.exit_code == 2
    assert message in out.output
    assert out.output.count("\n") == 1


def test_what_has_one_sparsity(tmp_path: Path) -> None:
    net = write(tmp_path, "net.py", NET)
    for method, message in (
        ("dst", "was trained by dst, which learns its thresholds, so that it has one sparsity"),
        ("nm", "sparsity 0.9 is more than nm:2:4 has: give 0.5 or less"),
    ):
        made = st3fx.DST() if method == "dst" else st3fx.ST3(granularity=st3fx.NM(2, 4))
        recipe = Recipe(spec=str(net), method=methods.to_dict(made), inputs=("2x1x28x28",))
        converted = convert_spec(recipe)
        save_bundle(converted.model, converted.recipe, tmp_path / method)
        with pytest.raises(SweepError, match=message):
            st3fx.sweep(tmp_path / method, (0.9,), bench=False, data={"data": "fashion-mnist-mini"})


def test_what_was_pruned_for_good_does_not_come_back() -> None:
    kept = methods.create("lrr", sparsity=0.8)
    assert isinstance(kept, ScheduledMethod)
    with pytest.raises(SweepError, match=r"lrr, which keeps what it has pruned: sparsity 0.5 is"):
        require_reachable("run", kept, 0.8, (0.5, 0.9))
    require_reachable("run", kept, 0.8, (0.8, 0.9))
    require_reachable("run", st3fx.ST3(0.8), 0.8, (0.5,))


def test_frozen_masks(run: Path, tmp_path: Path) -> None:
    model = st3fx.load_bundle(run / "model.st3fx")
    st3fx.Sparsifier(model).freeze()
    save_bundle(model, read_bundle(run / "model.st3fx").manifest.recipe, tmp_path / "frozen")
    with pytest.raises(SweepError, match=r"masks are frozen: .*: take a bundle from before"):
        st3fx.sweep(
            tmp_path / "frozen", (0.5,), bench=False, data={"data": f"{run.parent}/loaders.py"}
        )


def test_what_is_missing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="is no run and no bundle"):
        st3fx.sweep(tmp_path, bench=False)
    model = st3fx.load_bundle(run / "model.st3fx")
    recipe = read_bundle(run / "model.st3fx").manifest.recipe
    save_bundle(model, recipe, tmp_path / "alone")
    with pytest.raises(SweepError, match=r"no data for .*alone: name the run"):
        st3fx.sweep(tmp_path / "alone", bench=False)
    write(tmp_path, "empty.py", LOADERS.replace("TEST", "0"))
    with pytest.raises(TrainError, match="no sample: give test data to evaluate on"):
        st3fx.sweep(tmp_path / "alone", bench=False, data={"data": f"{tmp_path}/empty.py"})
    for name, said in (("bench.json", "result"), ("p/accuracy-macs.png", "picture")):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        with pytest.raises(st3fx.St3fxError, match=f"{name} exists and is no {said} of a sweep"):
            st3fx.sweep(
                run, (0.5,), bench=False, page=tmp_path / "bench.html", pictures=tmp_path / "p"
            )
        (tmp_path / name).unlink()
    with pytest.raises(SweepError, match=r"a.json: name the page, e.g. sweep.html"):
        st3fx.sweep(run, (0.5,), bench=False, page=tmp_path / "a.json")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(st3fx.St3fxError, match=r"mine.html exists and is no page of a sweep"):
        st3fx.sweep(run, (0.5,), bench=False, page=tmp_path / "mine.html")


def test_conditions() -> None:
    for text, sparsity in (
        ("drop<0.5", 0.8), ("drop<=2.01", 0.9), ("accuracy>90.5", 0.5), (" macs < 0.5k ", 0.9),
        ("macs>=900", 0.5), ("bytes<1M", 0.9), ("accuracy>=90", 0.8),
    ):  # fmt: skip
        assert Condition.parse(text).pick(MADE).sparsity == sparsity, text
    with pytest.raises(SweepError, match="no sparsity holds ms<3: ms is"):
        Condition.parse("ms<3").pick(MADE)
    assert check_sparsities((0.9, 0.0)) == (0.0, 0.9)
    with pytest.raises(SweepError, match="no sparsity: give some"):
        check_sparsities(())
