"""``st3fx quantize`` as a user runs it, on a run of the driver."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper
from safetensors.numpy import load_file

from st3fx.cli import main
from st3fx.cli.options import DATA_SETTINGS
from st3fx.cli.quantize import CALIBRATIONS
from st3fx.cli.views.quantize import print_quantize
from st3fx.commands.train import train_spec
from st3fx.export.export_result import Size
from st3fx.export.quantized import QuantFile
from st3fx.loading.spec import load_spec
from st3fx.loading.trust import remember
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.passes.onnx.quant_kernels.quant_report import QuantReport, QuantRow
from st3fx.quantization.quantize_result import Accuracy, LayerRow, QuantizeResult
from st3fx.quantization.settings import METHODS
from st3fx.runtime.costs import QuantCosts
from st3fx.training.settings import Settings
from tests.models import write
from tests.training.runs import LOADERS, settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in it, of one epoch at 80 %."""
    folder = tmp_path_factory.mktemp("quantize")
    train_spec(settings(folder, epochs=1, sparsity=0.8, granularity="block:4"))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory, whose model the user has run there too."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    load_spec(str(tmp_path / "net.py"))
    remember()
    return tmp_path


@pytest.fixture(autouse=True)
def dear_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros gain in networks as small as these, on any CPU."""
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=0.0, dense=1e-9))


def _run(*args: str) -> Result:
    return CliRunner().invoke(main, ["quantize", *args])


def _ok(*args: str) -> Result:
    result = _run(*args)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


def test_the_command_knows_the_settings_of_others() -> None:
    assert CALIBRATIONS == METHODS
    assert all(hasattr(Settings(), name) for name in DATA_SETTINGS)


@pytest.mark.slow
def test_a_run_is_quantized_on_its_own_data(folder: Path) -> None:
    text = _ok("run", "--test-images", "300", "--sparse-kernels").stdout
    assert "2 layers in integers; ranges: minmax over 256 samples; weights: safe\n" in text
    assert "test, 300 samples: fp32 " in text
    assert "wrote run/model.int8.onnx, run/model.int8.sparse.onnx (opset " in text
    record = json.loads(Path("run/quantize.json").read_text())
    assert record["path"] == "run/model.int8.onnx"
    assert record["accuracy"]["samples"] == 300
    assert abs(record["accuracy"]["fp32"] - record["accuracy"]["int8"]) < 0.03
    stored = {item.name: item for item in onnx.load("run/model.int8.onnx").graph.initializer}
    for name, weight in load_file("run/folded.safetensors").items():
        if weight.ndim > 1:
            integers = numpy_helper.to_array(stored[f"{name}_quantized"])
            assert not integers[weight == 0].any()
            assert (weight == 0).any()
    again = _run("run")
    assert (again.exit_code, again.stderr.partition(":")[0]) == (2, "error")
    assert "run/model.int8.onnx exists: choose another file" in again.stderr
    Path("run/model.int8.sparse.onnx").touch()
    Path("run/model.int8.onnx").rename("kept.onnx")
    again = _run("run", "--sparse-kernels")
    assert "run/model.int8.sparse.onnx exists: choose another file" in again.stderr
    Path("kept.onnx").rename("run/model.int8.onnx")
    first = Path("run/model.int8.onnx").read_bytes()
    _ok("run", "--test-images", "300", "--force", "--no-rank")
    assert Path("run/model.int8.onnx").read_bytes() == first
    _ok("run", "--test-images", "300", "--force", "--no-rank", "--seed", "1")
    assert Path("run/model.int8.onnx").read_bytes() != first  # other images


@pytest.mark.slow
def test_a_bundle_of_a_run_and_what_stays_in_fp32(folder: Path) -> None:
    args = ("run/model.st3fx", "--keep-fp32", "he*", "--test-images", "200", "-x", "out.json")
    values = json.loads(_ok(*args, "--json", "--calibration", "percentile").stdout)
    assert values == json.loads(Path("out.json").read_text())
    assert values["path"] == "model.int8.onnx"
    assert values["calibration"] == "percentile"
    reasons = {row["name"]: row["reason"] for row in values["layers"]}
    assert reasons == {"stem.weight": "", "head.weight": "asked for"}
    assert not Path("run/quantize.json").exists()
    more = ("run/model.st3fx", "--max-drop", "50", "--held-out-images", "100", "--force")
    held_out = json.loads(_ok(*more, "--json", "--test-images", "200").stdout)["held_out"]
    assert held_out["samples"] == 100


@pytest.mark.slow
def test_a_run_whose_file_finds_its_ranges_itself(folder: Path) -> None:
    text = _ok("run", "--test-images", "200", "--calibration", "dynamic").stdout
    assert "1 layer in integers, 1 in fp32; ranges: each call's own; weights: safe\n" in text
    assert "fp32: the input of a Conv is not rounded call by call" in text
    record = json.loads(Path("run/quantize.json").read_text())
    assert (record["calibration"], record["calibration_samples"]) == ("dynamic", 0)
    assert abs(record["accuracy"]["fp32"] - record["accuracy"]["int8"]) < 0.03


@pytest.mark.slow
def test_a_run_is_finetuned_on_its_own_data(folder: Path) -> None:
    args = ("run", "--no-rank", "--calibration", "percentile", "--percentile", "90")
    text = _ok(*args, "--finetune", "2").stdout
    assert "run on fashion-mnist-mini, on cpu, into run; fake quantization to 80.1 %" in text
    assert "finetuned for 2 epochs, " in text
    record = json.loads(Path("run/quantize.json").read_text())
    accuracy, done = record["accuracy"], record["finetuned"]
    assert f"int8 before: {100 * record['calibrated']:.2f} %" in text
    assert accuracy["int8"] >= record["calibrated"] - 0.005
    assert accuracy["int8"] > accuracy["fp32"] - 0.02
    assert done["last"] < done["first"]
    rows = [json.loads(line) for line in Path("run/finetune.jsonl").read_text().splitlines()]
    # As often as the run's own training was told.
    assert [(row["kind"], row["step"]) for row in rows] == [
        ("train", step) for step in range(2, done["steps"] + 1, 2)
    ]
    stored = {item.name: item for item in onnx.load("run/model.int8.onnx").graph.initializer}
    for name, weight in load_file("run/folded.safetensors").items():
        if weight.ndim > 1:
            integers = numpy_helper.to_array(stored[f"{name}_quantized"])
            assert not integers[weight == 0].any()
            assert (weight == 0).any()
    first = Path("run/model.int8.onnx").read_bytes()
    again = _run(*args, "--finetune", "2", "--force", "--json")
    assert "epoch 2/2" in again.stderr  # as st3fx train --json tells of its steps
    assert json.loads(again.stdout)["finetuned"] == done
    assert Path("run/model.int8.onnx").read_bytes() == first


@pytest.mark.slow
def test_a_spec_with_data_of_the_users_own(folder: Path) -> None:
    write(folder, "loaders.py", LOADERS)
    args = ("net.py", "--weights", "run/folded.safetensors", "--data", "loaders.py")
    values = json.loads(_ok(*args, "--calibration-images", "50", "--json").stdout)
    assert values["path"] == "net.int8.onnx"
    assert values["calibration_samples"] == 50
    assert values["compared"] == 64
    assert values["accuracy"]["samples"] == 20
    # What was left of 120 samples: the loader's last batch is not full.
    few = _run(*args, "--calibration-images", "140", "--max-drop", "1", "--force")
    assert few.exit_code == 2
    assert "has no training sample behind the first 204" in few.stderr
    everything = _ok(*args, "--calibration-images", "999", "--force", "--json")
    assert json.loads(everything.stdout)["calibration_samples"] == 140


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("net.py --allow-dense", "no data for net.py: name the run that it is from, or give"),
        ("net.py --data loaders.py", "net.py has no weight that is zero: prune it now"),
        ("nothing.py --data loaders.py", "no file nothing.py"),
        ("run -o run --force", "run is a folder: name the file to write"),
        ("run --keep-fp32 bone", "--keep-fp32 'bone' names no layer; there are stem.weight, head"),
        ("run --finetune 1 --lr 2", "lr 2: give a number above 0 and below 1, e.g. 0.0003"),
        (
            "run --finetune 1 --calibration dynamic",
            "--finetune trains with the ranges of a calibration, and --calibration dynamic takes",
        ),
        ("run --learn-scales", "--learn-scales is for --finetune: give that too, or leave it out"),
        (
            "run --calibration percentile --percentile 0",
            "percentile 0: give a number from 50 to 100",
        ),
        ("run --data cifar10 --data-path nowhere", "no cifar10 in nowhere"),
        ("broken", "broken has no model.st3fx yet: its training has not ended; go on with it"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_line_and_leave_nothing(folder: Path, args: str, message: str) -> None:
    write(folder, "loaders.py", LOADERS)
    (folder / "broken").mkdir()
    shutil.copy("run/settings.toml", "broken")
    before = {str(path) for path in folder.rglob("*") if path.suffix != ".pyc"}
    result = _run(*args.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert message in line
    after = {str(path) for path in folder.rglob("*") if path.suffix != ".pyc"}
    assert {path for path in after - before if "__pycache__" not in path} == set()


KERNELS = QuantReport(
    (
        QuantRow("l0.weight", "Conv", (8, 4, 3, 3), 0.5, 0.25, 20.0, 60.0, is_ours=True),
        QuantRow("l1.weight", "Conv", (8, 4, 3, 3), 0.5, 0.25, 30.0, 20.0, is_ours=False),
    ),
    {"QuantConv": 1},
)


def test_everything_worth_a_line_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [
        LayerRow(f"l{i}.weight", "Conv", (8, 4, 3, 3), 288, 144, 150, "", i / 10) for i in range(14)
    ]
    layers.append(LayerRow("fc.weight", "Gemm", (5, 8), 40, 0, None, "costs accuracy", 3.25))
    print_quantize(
        QuantizeResult(
            path=Path("m.int8.onnx"),
            files=(Path("m.int8.onnx"), Path("m.int8.onnx.data")),
            opset=20,
            calibration="entropy",
            calibration_samples=1,
            weight_range="full",
            layers=tuple(layers),
            sqnr=np.inf,
            compared=64,
            compared_new=False,
            accuracy=Accuracy(0.9, 0.88, 1000),
            tested_new=True,
            held_out=Accuracy(0.95, 0.955),
            max_drop=1,
            tried=4,
            sizes=(Size("fp32", 4_000_000, 3_000_000), Size("m.int8.onnx", 1_000_000, 500_000)),
            seconds=1.25,
            sparse=QuantFile(Path("m.int8.sparse.onnx"), KERNELS, 90_000, 1_000_000, 0.01, 0.02),
            sparse_accuracy=0.8801,
        )
    )
    text = capsys.readouterr().out
    for line in (
        "fc      Gemm       5x8    0.0%                          +3.2 dB   fp32: costs accuracy",
        "l13     Conv   8x4x3x3   50.0%                 6        +1.3 dB   int8",
        "... and 3 more of 15 (--json has all)",
        "14 layers in integers, 1 in fp32; ranges: entropy over 1 sample; weights: full",
        (
            "2,016 of 4,032 weights in integers were zero (50.00%), and all are; 84 more were "
            "rounded to it"
        ),
        "outputs against fp32: equal, over 64 samples, from which ranges were taken too",
        ("held out: fp32 95.00 %, int8 95.50 %, 0.50 points gained (--max-drop 1, 4 files tried)"),
        "test, 1,000 samples: fp32 90.00 %, int8 88.00 %, 2.00 points lost",
        "the test data loses more than the 1 points that were allowed",
        "wrote m.int8.onnx, m.int8.onnx.data (opset 20) in 1.2 s",
        "1 of 2 layers run by our kernels: 2.0 times as fast as dense INT8, as the cost model",
        "at most, ONNX Runtime's own INT8 kernels 0.02",
        "test with our kernels: int8 88.01 %",
    ):
        assert line in text, line
    assert text.index("fc  ") < text.index("l13 ") < text.index("l12 ")
