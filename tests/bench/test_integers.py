"""Rows in 8-bit integers: of a file, and of a run beside those in fp32."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import st3fx
from st3fx import native
from st3fx.bench.dense import write_dense
from st3fx.bench.variant import BenchSettings, Variant
from st3fx.commands import subjects
from st3fx.commands.lower import lower_file
from st3fx.commands.models import Request
from st3fx.commands.quantize import Images, quantize_spec, subject
from st3fx.commands.train import train_spec
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.quantization.settings import Settings
from st3fx.runtime.costs import QuantCosts
from tests.passes.onnx.quant_kernels.nets import Net
from tests.quantization.made import run_ops
from tests.training.runs import settings

QUICK = BenchSettings(iterations=3, warmup=0.0, threads=(1,))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, on a machine where zeros gain in small networks too."""
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=0.0, dense=1e-9))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _quantized() -> Path:
    """Two convolutions with many zeros."""
    net = Net("N", 64, 14, 14)
    inner = net.q(net.op("Relu", net.conv(net.q("x"), 64, 64, 3)), 0.03, 0)
    onnx.save(net.model(net.q(net.conv(inner, 64, 64, 3), 0.03, 110)), "net.int8.onnx")
    return Path("net.int8.onnx")


def _zeros(path: Path) -> dict[str, int]:
    """Name of each weight -> its zeros."""
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    return {name: int((array == 0).sum()) for name, array in arrays.items() if array.ndim == 4}


def _watch(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Name of each row that is measured -> its file."""
    seen: dict[str, Path] = {}

    def spy(
        models: Sequence[subjects.Subject],
        how: BenchSettings,
        folder: Path,
        report: subjects.Report,
    ) -> list[Variant]:
        made = subjects.variants(models, how, folder, report)
        for variant in made:
            copy = Path(f"seen-{len(seen)}.onnx")
            shutil.copy(variant.arguments["path"], copy)
            seen[variant.name] = copy
        return made

    monkeypatch.setattr("st3fx.commands.bench.variants", spy)
    return seen


def test_a_dense_counterpart_has_no_zero_and_runs_by_the_same_operators(tmp_path: Path) -> None:
    path = _quantized()
    zeros = _zeros(path)
    count = write_dense(path, Path("dense.onnx"), [name for name, n in zeros.items() if n])
    assert count == sum(zeros.values()) > 30_000
    assert not any(_zeros(Path("dense.onnx")).values())
    before, after = (onnx.load(name) for name in (path, "dense.onnx"))
    assert run_ops(before, tmp_path) == run_ops(after, tmp_path)
    assert run_ops(after, tmp_path)["QLinearConv"] == 2


def test_a_quantized_file_gets_its_kernels() -> None:
    path = _quantized()
    result = st3fx.benchmark(path, settings=QUICK)
    names = ["dense INT8", "net.int8.onnx", "sparse INT8 kernels"]
    assert [row.name for row in result.rows] == names
    assert [row.skips_zeros for row in result.rows] == [False, False, True]
    assert all(row.integers for row in result.rows)
    assert all(row.int8_ratio is None for row in result.rows)  # the baseline is that already
    assert result.rows[2].bound == result.rows[1].bound
    assert result.environment["kernels"] == native.isa()
    without = BenchSettings(iterations=3, warmup=0.0, threads=(1,), sparse_kernels=False)
    assert [row.name for row in st3fx.benchmark(path, settings=without).rows] == names[:2]
    # Of several each is measured as it is.
    assert len(st3fx.benchmark(path, path, settings=QUICK).rows) == 2


def test_a_file_with_kernels_is_compared_with_the_file_it_was_made_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = _quantized()
    lower_file(path, "net.int8.sparse.onnx")
    seen = _watch(monkeypatch)
    rows = st3fx.benchmark("net.int8.sparse.onnx", settings=QUICK).rows
    assert [row.name for row in rows] == ["dense INT8", "net.int8.sparse.onnx"]
    assert [row.skips_zeros for row in rows] == [False, True]
    assert set(_zeros(seen["dense INT8"])) == set(_zeros(path))  # of this one, by its names
    assert not any(_zeros(seen["dense INT8"]).values())
    path.unlink()
    seen.clear()
    rows = st3fx.benchmark("net.int8.sparse.onnx", settings=QUICK).rows
    assert [row.name for row in rows] == ["dense INT8", "net.int8.sparse.onnx"]
    assert not any(_zeros(seen["dense INT8"]).values())


def test_no_kernel_that_gains_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=1.0))
    result = st3fx.benchmark(_quantized(), settings=QUICK)
    assert [row.name for row in result.rows] == ["dense INT8", "net.int8.onnx"]
    assert "for net.int8.onnx: no layer is expected to gain." in " ".join(result.verdict)


@pytest.mark.slow
def test_a_run_is_measured_in_integers_once_it_has_been_quantized(folder: Path) -> None:
    train_spec(settings(folder, epochs=1, sparsity=0.8, granularity="block:4"))
    bare = st3fx.benchmark("run", settings=QUICK)
    assert "dense INT8" not in [row.name for row in bare.rows]
    assert bare.verdict[-1] == (
        "Not measured in INT8: st3fx quantize run writes run/model.int8.onnx."
    )
    assert bare.model == "run"
    found = subject(Request("run"), {})
    quantize_spec(found, found.target, Settings(rank=False), Images(32, 32, 50))
    result = st3fx.benchmark("run", settings=QUICK)
    names = [row.name for row in result.rows]
    assert [name for name in names if name != "sparse kernels"] == [
        "dense", "folded", "dense INT8", "sparse INT8 kernels",
    ]  # fmt: skip
    by_name = {row.name: row for row in result.rows}
    assert [by_name[name].integers for name in ("dense", "dense INT8")] == [False, True]
    assert by_name["dense INT8"].int8_ratio is None
    assert by_name["dense"].int8_ratio is not None
    assert by_name["sparse INT8 kernels"].int8_ratio is not None
    assert not any("Not measured in INT8" in sentence for sentence in result.verdict)
    bundle = st3fx.benchmark("run/model.st3fx", settings=QUICK)
    assert [row.name for row in bundle.rows] == names
    # Pruned anew it is another model than that file.
    request = Request("run", sparsity=0.9)
    other = st3fx.benchmark(request, settings=QUICK)
    assert "dense INT8" not in [row.name for row in other.rows]
    sized = st3fx.benchmark(Request("run", inputs=("1x1x27x27",)), settings=QUICK)
    assert any("run/model.int8.onnx: input " in sentence for sentence in sized.verdict)
    # Trained anew, too.
    train_spec(settings(folder, epochs=1, sparsity=0.8), force=True)
    assert not Path("run/model.int8.onnx").exists()
