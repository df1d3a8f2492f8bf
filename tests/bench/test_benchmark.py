"""The verb: what is compared, with what, and what comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import st3fx
from st3fx.bench.bench_result import read_result
from st3fx.bench.onnx_call import CONFIG
from st3fx.bench.variant import BenchSettings, Variant
from st3fx.commands import subjects
from st3fx.commands.models import Request
from st3fx.errors import BenchError, ExportError
from tests.export.nets import OneSample
from tests.flops.graphs import graph
from tests.models import TINY, write

QUICK = BenchSettings(iterations=3, warmup=0.0, threads=(1,))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "tiny.py", TINY)
    weight = np.ones((3, 4), np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    onnx.save(graph([product], {"x": ["n", 3]}, {"w": weight}), tmp_path / "full.onnx")
    weight[:2] = 0
    onnx.save(graph([product], {"x": ["n", 3]}, {"w": weight}), tmp_path / "zeros.onnx")
    return tmp_path


def test_threads_are_bounded_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st3fx.commands.bench.cpus", lambda: 1)
    settings = BenchSettings(iterations=3, warmup=0.0, threads=(7000, 1, 50))
    result = st3fx.benchmark("full.onnx", settings=settings)
    assert [row.threads for row in result.rows] == [1]
    assert result.settings["threads"] == [1]
    assert "-ncores 1 " in result.command
    said = (
        "7,000 and 50 threads were asked for: this process may use 1 CPU, so it was measured with 1"
    )
    assert result.verdict[-1] == f"{said}."
    monkeypatch.setattr("st3fx.commands.bench.cpus", lambda: 2)
    result = st3fx.benchmark("full.onnx", settings=BenchSettings(iterations=3, warmup=0.0,
                                                                 threads=(1, 2)))  # fmt: skip
    assert [row.threads for row in result.rows] == [1, 2]
    assert not any("were asked for" in sentence for sentence in result.verdict)


@pytest.mark.slow
def test_a_spec_against_its_dense_counterpart() -> None:
    stages: list[str] = []
    settings = BenchSettings(iterations=20, warmup=0.0, batch_sizes=(2, 5), threads=(1, 2))
    result = st3fx.benchmark(
        Request("tiny.py", sparsity=0.75), settings=settings, progress=stages.append
    )
    places = [(row.batch, row.threads) for row in result.rows[::2]]
    assert places == [(2, 1), (2, 2), (5, 1), (5, 2)]
    assert [row.name for row in result.rows] == ["dense", "folded"] * 4
    for dense, folded in zip(result.rows[::2], result.rows[1::2], strict=True):
        assert (dense.sparsity, dense.bound, dense.ratio) == (0.0, None, None)
        assert folded.sparsity == 0.75
        assert folded.bound is not None
        assert 1 < folded.bound < 10
        assert folded.ratio is not None
        assert 0 < folded.ratio.low <= folded.ratio.median <= folded.ratio.high
        assert 0 < folded.median_ms <= folded.p95_ms
        assert (folded.iterations, folded.rounds) == (20, 10)
        assert folded.peak_memory is not None
        assert 0 < folded.peak_memory < 10**9
    assert result.model == "tiny"
    assert result.command == (
        "st3fx bench tiny.py -b 2 -b 5 -ncores 1 -ncores 2 --sparsity 0.75 --iterations 20 -w 0"
    )
    assert result.settings["session"] == CONFIG
    assert result.settings["batch_sizes"] == [2, 5]
    result.write("out.json")
    assert read_result("out.json") == result
    assert result.verdict
    assert {"load", "fold", "capture", "compare", "count", "dense"} <= set(stages)
    assert "loading folded (batch 5, threads 2)" in stages


@pytest.mark.slow
def test_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense graph has no zeros, the folded one has those of the model, inputs are the same."""
    seen: dict[str, tuple[dict[str, float], int]] = {}
    original = subjects.variants

    def spy(*args: object) -> list[Variant]:
        made = original(*args)  # type: ignore[arg-type]
        for variant in made:
            model = onnx.load(variant.arguments["path"])
            arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
            zeros = {name: float((array == 0).mean()) for name, array in arrays.items()}
            seen[variant.name] = (zeros, variant.inputs(4)[0].shape[0])
        return made

    monkeypatch.setattr("st3fx.commands.bench.variants", spy)
    st3fx.benchmark(Request("tiny.py", sparsity=0.75), settings=QUICK)
    (dense, size), (folded, same) = seen["dense"], seen["folded"]
    assert dense["conv.weight"] == dense["head.weight"] == 0
    assert 0.6 < folded["conv.weight"] < 0.9
    assert folded["head.weight"] > 0
    assert size == same == 4


@pytest.mark.slow
def test_onnx_files_are_compared_with_the_first() -> None:
    result = st3fx.benchmark("full.onnx", Path("zeros.onnx"), settings=QUICK)
    assert [row.name for row in result.rows] == ["full.onnx", "zeros.onnx"]
    assert [row.sparsity for row in result.rows] == pytest.approx([0.0, 8 / 12])
    assert result.rows[0].ratio is None
    assert (result.rows[0].batch, result.model) == (1, "full.onnx, zeros.onnx")
    # Zeros first: the first is the baseline all the same.
    names = [row.name for row in st3fx.benchmark("zeros.onnx", "full.onnx", settings=QUICK).rows]
    assert names == ["zeros.onnx", "full.onnx"]


@pytest.mark.slow
def test_one_file_with_zeros_gets_a_counterpart_and_one_without_stands_alone() -> None:
    rows = st3fx.benchmark("zeros.onnx", settings=QUICK).rows
    assert [row.name for row in rows] == ["dense", "zeros.onnx"]
    result = st3fx.benchmark("full.onnx", settings=QUICK)
    assert [row.name for row in result.rows] == ["full.onnx"]
    assert "stands alone" in result.verdict[0]


def test_files_that_are_made_for_other_sizes_are_refused(folder: Path) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    for name, rows in (("small.onnx", 4), ("large.onnx", 6), ("free.onnx", "n")):
        weights = {"w": np.ones((3, 4), np.float32)}
        onnx.save(graph([product], {"x": [1, rows, 3]}, weights), folder / name)
    with pytest.raises(
        BenchError, match=r"small\.onnx is called with 1x4x3, but large\.onnx with "
    ):
        st3fx.benchmark("small.onnx", "large.onnx", settings=QUICK)
    same = [Request(name, inputs=("1x4x3",)) for name in ("small.onnx", "free.onnx")]
    assert len(st3fx.benchmark(*same, settings=QUICK).rows) == 2


def test_a_file_with_its_weights_in_nodes_gets_a_counterpart_or_a_word(folder: Path) -> None:
    weight = np.array([[0, 1], [2, 0]], np.float32)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    onnx.save(graph(nodes, {"x": ["n", 2]}), folder / "nodes.onnx")
    result = st3fx.benchmark("nodes.onnx", settings=QUICK)
    assert [(row.name, row.sparsity) for row in result.rows] == [
        ("dense", 0.0),
        ("nodes.onnx", 0.5),
    ]
    nodes = [
        helper.make_node("Relu", ["v"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    onnx.save(graph(nodes, {"x": ["n", 2]}, {"v": weight - 1}), folder / "computed.onnx")
    result = st3fx.benchmark("computed.onnx", settings=QUICK)
    assert [(row.name, row.sparsity) for row in result.rows] == [("computed.onnx", 0.75)]
    assert result.verdict[-1].startswith("No dense counterpart of computed.onnx: its zeros are in")


def test_files_of_the_same_name(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "zeros.onnx").rename(folder / "other" / "full.onnx")
    rows = st3fx.benchmark("full.onnx", "other/full.onnx", "full.onnx", settings=QUICK).rows
    assert [row.name for row in rows] == ["full.onnx", "other/full.onnx", "full.onnx_2"]


@pytest.mark.slow
def test_a_model_in_memory() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    example = torch.randn(2, 8)
    model, sparsifier = st3fx.convert(net, example, st3fx.ST3(sparsity=0.5))
    sparsifier.set_sparsity(0.5)
    result = st3fx.benchmark(model, example_inputs=example, settings=QUICK)
    assert [row.name for row in result.rows] == ["dense", "folded"]
    assert (result.rows[1].sparsity, result.rows[0].batch) == (0.5, 2)
    assert (result.model, result.command) == ("Sequential", "")
    assert st3fx.Sparsifier(model).sparsity == 0.5  # it is left as it was


@pytest.mark.slow
def test_a_model_for_one_batch_size() -> None:
    example = torch.randn(1, 4)
    with pytest.raises(ExportError, match="--fixed-batch"):
        st3fx.benchmark(OneSample(), example_inputs=example, settings=QUICK)
    result = st3fx.benchmark(OneSample(), example_inputs=example, settings=QUICK, fixed_batch=True)
    assert [(row.name, row.batch) for row in result.rows] == [("dense", 1)]
    asked = BenchSettings(iterations=1, batch_sizes=(1, 2))
    with pytest.raises(BenchError, match="builds batch 1 in: batch 2 cannot be given"):
        st3fx.benchmark(OneSample(), example_inputs=example, settings=asked, fixed_batch=True)


@pytest.mark.slow
def test_pytorch_on_request() -> None:
    settings = BenchSettings(iterations=3, warmup=0.0, threads=(1,), torch=("eager",))
    result = st3fx.benchmark(Request("tiny.py", sparsity=0.75), settings=settings)
    row = result.rows[2]
    assert (row.name, row.runtime, row.provider) == (
        "torch eager",
        f"torch {torch.__version__}",
        "",
    )
    assert row.ratio is not None
    assert row.peak_memory is not None
    assert row.peak_memory >= 4 * (3 * 4 * 9 + 4 + 4 * 4 + 5 * 4 + 5)
    with pytest.raises(BenchError, match="rows by PyTorch need a bundle or a SPEC first"):
        st3fx.benchmark("full.onnx", settings=settings)


def test_what_cannot_be_measured() -> None:
    for models, message in (
        ((), "no model: give a bundle, a SPEC, an ONNX file or an nn.Module"),
        ((nn.Linear(2, 2),), "a model in memory needs example_inputs"),
        (
            ("w.safetensors",),
            "w.safetensors holds weights and no graph: st3fx bench SPEC --weights",
        ),
        ((Request("full.onnx", sparsity=0.5),), "full.onnx is exported already: leave --weights"),
    ):
        with pytest.raises(BenchError, match=message):
            st3fx.benchmark(*models, settings=QUICK)
    with pytest.raises(BenchError, match=r"no file no\.so: --custom-ops takes a shared library"):
        st3fx.benchmark("full.onnx", settings=BenchSettings(custom_ops="no.so"))
