"""``st3fx.quantize``: a model in memory and batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import st3fx
from st3fx.commands.calls import Calls
from st3fx.commands.finetune import OfRun
from st3fx.commands.quantize import Images, _Parts
from st3fx.data.base import Data
from st3fx.errors import InputError, NativeError, QuantizeError
from st3fx.export.write import save_proto
from st3fx.passes.onnx.quant_kernels import lower
from st3fx.runtime.costs import QuantCosts
from st3fx.training.report import Silent
from st3fx.training.settings import Settings


class Net(nn.Module):
    """Convolutions with batch norm around an addition, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        logits: Tensor = self.head((x + self.body(x)).relu().mean((2, 3)))
        return logits


@pytest.fixture(autouse=True)
def dear_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros gain in networks as small as these, on any CPU."""
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=0.0, dense=1e-9))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Folded at 70 %."""
    torch.manual_seed(0)
    converted, sparsifier = st3fx.convert(Net(), torch.randn(2, 3, 8, 8), st3fx.ST3(0.7))
    sparsifier.set_sparsity(0.7)
    return st3fx.fold(converted).eval()


def batches(count: int = 4, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(count)]


def agreement(model: nn.Module) -> Callable[[Callable[..., Any]], float]:
    """The share of samples for which a file has the model's best class."""
    calls = batches(seed=1)

    def evaluate(predict: Callable[..., Any]) -> float:
        with torch.no_grad():
            same = [predict(x).argmax(1) == model(x).argmax(1) for x in calls]
        return float(torch.cat(same).double().mean())

    return evaluate


def test_a_sparse_model_keeps_its_zeros_and_its_outputs(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "net.int8.onnx"
    stages: list[str] = []
    result = st3fx.quantize(
        model, batches(), path, evaluate=agreement(model), progress=stages.append
    )
    assert stages[-4:] == ["rank", "integers", "score", "measure"]
    assert result.files == (path,)
    assert list(path.parent.iterdir()) == [path]
    assert (result.calibration_samples, result.compared, result.compared_new) == (56, 8, True)
    assert [row.name for row in result.layers] == ["stem.weight", "body.weight", "head.weight"]
    stored = {item.name: item for item in onnx.load(path).graph.initializer}
    parameters = dict(model.named_parameters())
    for row in result.layers:
        integers = numpy_helper.to_array(stored[f"{row.name}_quantized"])
        weight = parameters[row.name].detach().numpy()
        assert integers.dtype == np.int8
        assert not integers[weight == 0].any()
        assert row.zeros == (weight == 0).sum() > 0
        assert row.integer_zeros == (integers == 0).sum()
        assert row.gain is not None
    assert result.zeros == sum(row.zeros for row in result.layers)
    assert result.rounded == sum(row.rounded for row in result.layers)
    session = ort.InferenceSession(path)
    for size in (1, 7):
        x = torch.randn(size, 3, 8, 8)
        (found,) = session.run(None, {"x": x.numpy()})
        wanted = model(x).detach().numpy()
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert result.sqnr is not None
    assert result.sqnr > 25
    assert result.accuracy is not None
    assert result.accuracy.fp32 == 1
    assert result.accuracy.int8 > 0.9
    assert result.sizes[0].raw > result.sizes[1].raw * 0.9
    values = json.loads(json.dumps(result.to_dict()))
    assert values["layers"][1]["rounded"] == result.layers[1].rounded
    # What counts multiplications sees the same zeros, and those that rounding adds.
    counted = st3fx.count_flops(path, [(1, 3, 8, 8)])
    assert counted.weights == result.elements
    assert counted.weight_nonzeros == result.elements - result.zeros - result.rounded


def test_a_file_is_trained_by_the_outputs_in_fp32(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    ranges: dict[str, Any] = {"calibration": "percentile", "percentile": 97.0}
    before = st3fx.quantize(model, batches(), path, rank=False, **ranges)
    assert before.finetuned is None
    result = st3fx.quantize(
        model, iter(batches()), path, rank=False, finetune=20, lr=1e-3, evaluate=agreement(model),
        **ranges,
    )  # fmt: skip
    assert result.finetuned is not None
    assert (result.finetuned.steps, result.finetuned.epochs) == (80, 20)
    assert result.finetuned.last < 0.9 * result.finetuned.first
    assert (result.zeros, len(result.integer)) == (before.zeros, 3)
    assert result.calibrated is not None
    more = st3fx.quantize(
        model, batches(), path, rank=False, finetune=1, finetune_batches=batches(9, seed=5),
        learn_scales=True,
    )  # fmt: skip
    assert more.finetuned is not None
    assert more.finetuned.steps == 9


def given(scores: list[float]) -> Callable[[Callable[..., Any]], float]:
    """Scores in their order, whatever is scored."""
    left = iter(scores)
    return lambda _: next(left)


def test_layers_stay_in_fp32_by_name_and_by_accuracy(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    result = st3fx.quantize(model, batches(), path, keep_fp32=["stem"], rank=False)
    assert [row.reason for row in result.layers] == ["asked for", "", ""]
    assert result.layers[0].integer_zeros is None
    stored = {item.name: item for item in onnx.load(path).graph.initializer}
    assert stored["stem.weight"].data_type == onnx.TensorProto.FLOAT
    assert "body.weight" not in stored

    seen: list[float] = []

    def evaluate(predict: Callable[..., Any]) -> float:
        """A model whose accuracy is 90 %, and in integers falls with the noise."""
        x = batches(1)[0]
        noise = float((predict(x) - model(x)).square().mean().detach())
        seen.append(noise)
        return 0.9 - min(0.05, noise * 3e3)

    full = st3fx.quantize(model, batches(), path, evaluate=evaluate)
    assert full.accuracy is not None
    all_int8 = full.accuracy.drop
    assert all_int8 > 0
    found = st3fx.quantize(model, batches(), path, evaluate=evaluate, max_drop=all_int8 * 0.75)
    assert found.held_out is not None
    assert found.held_out.drop <= all_int8 * 0.75
    assert found.meets is None  # the one who chose cannot judge
    assert json.loads(json.dumps(found.to_dict()))["meets"] is None
    for scores, holds in (([0.9, 0.9], True), ([0.9, 0.8], False)):
        judged = st3fx.quantize(
            model, batches(), path, evaluate=evaluate, test=given(scores),
            max_drop=all_int8 * 0.75, rank=False,
        )  # fmt: skip
        assert judged.accuracy is not None
        assert judged.accuracy.fp32 == 0.9
        assert judged.meets is holds
    kept = [row for row in found.layers if row.integer_zeros is None]
    assert kept
    assert {row.reason for row in kept} == {"costs accuracy"}
    best = max((row for row in found.layers), key=lambda row: row.gain or 0)
    assert best in kept
    with pytest.raises(QuantizeError, match="with all but one of 3 layers in fp32 still more than"):
        st3fx.quantize(model, batches(), path, evaluate=evaluate, max_drop=0)


def test_a_converted_model_and_keyword_arguments(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)

        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": self.a(left) + self.b(right), "other": self.a(left).relu()}

    torch.manual_seed(0)
    calls = [{"left": torch.randn(4, 3, 6), "right": torch.randn(4, 3, 6)} for _ in range(3)]
    converted, sparsifier = st3fx.convert(Two(), calls[0], st3fx.ST3(0.5))
    sparsifier.set_sparsity(0.5)
    result = st3fx.quantize(converted, calls, tmp_path / "two.onnx")
    assert result.zeros == 48
    assert {row.op for row in result.layers} == {"MatMul"}
    assert [p.name for p in ort.InferenceSession(result.path).get_outputs()] == ["sum", "other"]


def test_a_fixed_batch(model: nn.Module, tmp_path: Path) -> None:
    few = [batch[:5] for batch in batches()]
    result = st3fx.quantize(model, few, tmp_path / "net.onnx", fixed_batch=True)
    assert ort.InferenceSession(result.path).get_inputs()[0].shape[0] == 5
    # Too few to keep some back: outputs are compared by those that gave the ranges.
    assert (result.calibration_samples, result.compared, result.compared_new) == (20, 20, False)


class Small(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).relu().mean((2, 3)))
        return logits


def test_outputs_are_compared_by_samples_that_gave_no_range(tmp_path: Path) -> None:
    """Every fifth batch is larger than all ranges: that is seen."""
    torch.manual_seed(0)
    net = Small().eval()
    same = [torch.randn(8, 3, 4, 4) for _ in range(10)]
    odd = [50 * x if place % 5 == 4 else x for place, x in enumerate(same)]
    good = st3fx.quantize(net, same, tmp_path / "net.onnx", rank=False)
    assert (good.calibration_samples, good.compared, good.compared_new) == (64, 16, True)
    assert good.sqnr is not None
    assert good.sqnr > 25
    with pytest.raises(QuantizeError, match="far from fp32"):
        st3fx.quantize(net, odd, tmp_path / "net.onnx", rank=False)


def test_steps_of_an_epoch_where_the_batch_of_the_file_is_smaller(model: nn.Module) -> None:
    exported = SimpleNamespace(
        inputs=[SimpleNamespace(name="x", shape=(2, 3, 8, 8))], dynamic_batch=False
    )
    calls = Calls(model, exported)  # type: ignore[arg-type]
    assert calls.parts(16) == len(list(calls.feeds(torch.randn(16, 3, 8, 8), 16))) == 8
    assert calls.parts(3) == 1
    with pytest.raises(QuantizeError, match="takes 2 samples at once, and batches have 1"):
        calls.parts(1)
    data = SimpleNamespace(train=range(5), name="made")
    about: dict[str, Any] = {"name": "made", "epochs": 2}
    lessons = OfRun(Settings(spec="made"), data, calls.feeds, None, Silent(),  # type: ignore[arg-type]
                    parts=calls.parts(16), **about)  # fmt: skip
    assert lessons.count == 40


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """Folded at 90 % in blocks of four."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    method = st3fx.ST3(0.9, granularity=st3fx.Block(4))
    converted, sparsifier = st3fx.convert(net, torch.randn(2, 3, 8, 8), method)
    sparsifier.set_sparsity(0.9)
    return st3fx.fold(converted).eval()


def test_a_second_file_has_our_kernels(wide: nn.Module, tmp_path: Path) -> None:
    path, beside = tmp_path / "net.int8.onnx", tmp_path / "net.int8.sparse.onnx"
    options: dict[str, Any] = {"rank": False, "evaluate": agreement(wide), "sparse_kernels": True}
    result = st3fx.quantize(wide, batches(), path, **options)
    assert sorted(tmp_path.iterdir()) == [path, beside]
    assert result.files == (path, beside)
    assert result.sparse is not None
    assert result.sparse.path == beside
    assert result.sparse.kernels.ours >= 1
    assert [size.name for size in result.sizes] == ["fp32", path.name, beside.name]
    assert result.sizes[2].raw == beside.stat().st_size < result.sizes[1].raw
    x = batches(1, seed=3)[0].numpy()
    (stock,) = ort.InferenceSession(path).run(None, {"input": x})
    (ours,) = st3fx.runtime.session(beside).run(None, {"input": x})
    assert np.abs(ours - stock).max() < 0.02 * np.abs(stock).max()
    assert result.accuracy is not None
    assert result.sparse_accuracy == pytest.approx(result.accuracy.int8, abs=0.01)
    assert json.loads(json.dumps(result.to_dict()))["sparse"]["kernels"]["ours"] >= 1


def test_kernels_that_score_otherwise_leave_nothing(wide: nn.Module, tmp_path: Path) -> None:
    scores = iter([0.9, 0.9, 0.88])
    with pytest.raises(QuantizeError, match=r"with our kernels the accuracy is 88.0%, with ONNX"):
        st3fx.quantize(
            wide, batches(1), tmp_path / "net.int8.onnx", rank=False, sparse_kernels=True,
            evaluate=lambda predict: next(scores),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sparse", [True, False])
def test_where_no_layer_gains_an_old_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool
) -> None:
    """It was made from another file, whether or not a new one was asked for; others' files stay."""
    monkeypatch.setattr(lower, "quant_costs", lambda: QuantCosts(call=1.0))
    torch.manual_seed(0)
    path, beside = tmp_path / "net.int8.onnx", tmp_path / "net.int8.sparse.onnx"
    save_proto(onnx.ModelProto(), beside)
    calls = [torch.randn(8, 4) for _ in range(2)]
    result = st3fx.quantize(nn.Linear(4, 3), calls, path, rank=False, sparse_kernels=sparse)
    assert (result.sparse is not None) == sparse
    assert result.sparse is None or result.sparse.path is None
    assert list(tmp_path.iterdir()) == [path]
    beside.write_text("not written by st3fx")
    st3fx.quantize(nn.Linear(4, 3), calls, path, rank=False, sparse_kernels=sparse)
    assert sorted(tmp_path.iterdir()) == [path, beside]


def test_without_the_library_it_says_so_first(
    wide: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise NativeError("no kernels here")

    monkeypatch.setattr("st3fx.runtime.library", missing)
    with pytest.raises(QuantizeError, match=r"no kernels here\. Without --sparse-kernels the file"):
        st3fx.quantize(wide, batches(1), tmp_path / "net.int8.onnx", sparse_kernels=True)
    assert list(tmp_path.iterdir()) == []


def _nan(value: float) -> list[Tensor]:
    return [torch.full((2, 3, 8, 8), value)]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], QuantizeError, "the calibration data has no batch"),
        ([(x, torch.zeros(16)) for x in batches(1)], InputError, "Net refuses the example inputs"),
        ([*batches(1), torch.zeros(2, 3, 9, 9)], QuantizeError,
         "a batch of 2x3x9x9 does not fit the model, which takes batchx3x8x8"),
        ([*batches(1), *_nan(float("nan"))], QuantizeError, "x that are not finite"),
        ([*batches(1), torch.zeros(0, 3, 8, 8)], QuantizeError, "a batch has no sample"),
    ],
)  # fmt: skip
def test_wrong_batches_are_one_line_and_leave_nothing(
    model: nn.Module, tmp_path: Path, data: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        st3fx.quantize(model, data, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_fp32": ["body.wieght"]}, r"'body.wieght' names no layer; did you mean body.weight"),
        ({"keep_fp32": ["*"]}, r"--keep-fp32 \* leaves no layer for integers"),
        ({"max_drop": 1}, "--max-drop needs data with targets"),
        ({"evaluate": lambda predict: 88.5}, "evaluate gave 88.5: it must give a share"),
        ({"calibration": "kl"}, "calibration 'kl': give minmax or"),
    ],
)
def test_wrong_options(
    model: nn.Module, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(QuantizeError, match=message):
        st3fx.quantize(model, batches(1), tmp_path / "net.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_in_integers_is_no_file(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("what was there")
    scores = iter([0.9, 0.79])
    with pytest.raises(QuantizeError, match=r"the accuracy falls from 90.0% to 79.0%: "):
        st3fx.quantize(model, batches(1), path, evaluate=lambda predict: next(scores))
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"weights of torch.float16: give model.float\(\)"):
        st3fx.quantize(nn.Linear(3, 4).half(), [torch.randn(2, 3).half()], tmp_path / "h.onnx")


class Noise(Dataset[tuple[Tensor, int]]):
    """Draws from the global generator, as transforms of users do."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError
        return torch.randn(3, 8, 8), index


def test_every_file_is_scored_on_the_same_samples_where_data_draws_them(model: nn.Module) -> None:
    exported = SimpleNamespace(
        inputs=[SimpleNamespace(name="x", shape=("batch", 3, 8, 8))], dynamic_batch=True
    )
    loader = DataLoader(Noise(), batch_size=2)
    data = Data(loader, loader, "noise", (3, 8, 8), None)
    parts = _Parts(data, Calls(model, exported), Images(), 0)  # type: ignore[arg-type]
    seen: list[list[Any]] = []

    def run(feed: Any) -> dict[str, Any]:
        seen[-1].append(feed["x"])
        return {"logits": np.zeros((len(feed["x"]), 6), np.float32)}

    score = parts.test()
    for _ in range(2):
        seen.append([])
        score(run)
        torch.rand(3)
    assert len(seen[0]) == 3
    assert all(map(np.array_equal, *seen))
    assert not np.array_equal(seen[0][0], seen[0][1])
