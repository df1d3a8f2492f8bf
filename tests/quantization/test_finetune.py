"""Training a file of integers: what is computed, what moves, what stays zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from st3fx.errors import QuantizeError
from st3fx.passes.onnx.values import Array
from st3fx.quantization.check import check_weights
from st3fx.quantization.fake import channel_scales, fake_activation, fake_weight
from st3fx.quantization.finetune import (
    Batch,
    Checked,
    Course,
    Finetuned,
    Tuning,
    divergence,
    finetune,
)
from st3fx.quantization.trainable import Trainable, trainable
from tests.passes.onnx.graphs import graph, weight
from tests.quantization.made import Made, constants, make, outputs

B8 = np.linspace(-1, 1, 8, dtype=np.float32)
SIGNATURE = "float[N,3,6,6] x => float[N,8] y"
NETS: dict[str, tuple[str, str, dict[str, Array]]] = {
    "residual": (SIGNATURE, """
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
        r = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
        d = Add (c, r)
        e = Relu (d)
        p = MaxPool <kernel_shape = [6, 6]> (e)
        q = Flatten (p)
        y = Gemm <transB = 1> (q, w2, b2)
     """, {"w0": weight(8, 3, 3, 3), "w1": weight(8, 8, 3, 3, seed=1),
           "w2": weight(8, 8, density=0.6, seed=2), "b0": B8, "b1": B8[::-1], "b2": 2 * B8}),
    "depthwise": ("float[N,3,6,6] x => float[N,8,6,6] y", """
        a = Conv (x, w0, b0)
        c = Clip (a, low, high)
        d = Conv <group = 8, pads = [1, 1, 1, 1]> (c, w1, b1)
        h = HardSwish (d)
        y = Conv (h, w2)
     """, {"w0": weight(8, 3, 1, 1, density=0.6), "b0": B8, "b1": B8 / 2,
           "w1": weight(8, 1, 3, 3, density=0.8, seed=1), "low": np.array(0, np.float32),
           "high": np.array(6, np.float32), "w2": weight(8, 8, 1, 1, density=0.6, seed=2)}),
    "linear": ("float[N,4,6] x => float[N,4,8] y", """
        a = MatMul (x, w0)
        b = Add (a, b0)
        n = LayerNormalization (b, s, t)
        g = Gelu (n)
        y = MatMul (g, w1)
     """, {"w0": weight(6, 8, density=0.6), "b0": B8, "w1": weight(8, 8, density=0.6, seed=1),
           "s": 1 + B8 / 4, "t": B8[::-1].copy()}),
}  # fmt: skip


@pytest.fixture(params=list(NETS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return _made(request.param, tmp_path)


def _made(name: str, folder: Path, **settings: Any) -> Made:
    signature, body, values = NETS[name]
    shape = (4, 4, 6) if name == "linear" else (4, 3, 6, 6)
    return make(graph(signature, body, **values), folder, *shape, **settings)


class Lessons:
    """The calibration's own calls, again and again."""

    device = torch.device("cpu")

    def __init__(self, made: Made) -> None:
        self.count = len(made.feeds)
        self.losses: list[float] = []
        self.events: list[str] = []
        self._feeds = made.feeds

    def epoch(self, number: int) -> Iterator[Batch]:
        for feed in self._feeds:
            yield Batch(tuple(torch.from_numpy(array) for array in feed.values()))

    def begin(self, student: Trainable) -> None:
        self.events.append("begin")

    def seen(
        self, step: int, lr: float, loss: Tensor, outputs: Mapping[str, Tensor], batch: Batch
    ) -> None:
        assert step == len(self.losses) + 1
        assert set(outputs) == {"y"}
        self.losses.append(float(loss))

    def end(self) -> None:
        self.events.append("end")


def _checked(made: Made, folder: Path) -> Checked:
    expected = [{"y": outputs(made.source.model, feed, optimized=False)[0]} for feed in made.feeds]
    return Checked(made.feeds, expected, folder / "trial.onnx")


def _parameters(made: Made) -> tuple[str, ...]:
    return tuple(item.name for item in made.source.model.graph.initializer if item.dims)


def _step(made: Made, name: str) -> float:
    """Of the output, or of the last activation that is rounded."""
    scales = [
        float(value) for key, value in constants(made.quantized()).items()
        if key.endswith("_scale") and not value.ndim
    ]  # fmt: skip
    assert scales, name
    return min(scales)


def _outputs(student: Trainable, feed: Mapping[str, Array]) -> Array:
    with torch.no_grad():
        found: Tensor = student.module(*(torch.from_numpy(x) for x in feed.values()))["y"]
    return found.numpy()


@pytest.mark.parametrize("weight_range", ["safe", "full"])
def test_the_module_computes_what_the_file_does_before_and_after_training(
    made: Made, tmp_path: Path, weight_range: str
) -> None:
    file = made.quantized(weight_range=weight_range)
    student = trainable(file, made.source, _parameters(made), weight_range)
    step = _step(made, "y")
    assert constants(student.written(file, weight_range)).keys() == constants(file).keys()
    for name, value in constants(student.written(file, weight_range)).items():
        old = constants(file)[name].astype(np.float64)
        assert np.abs(value - old).max(initial=0) <= 2e-7 * np.abs(old).max(initial=0), name
    optimizer = torch.optim.SGD([*student.weights, *student.others, *student.scales], 0.01)
    for rounds in range(4):
        found = student.written(file, weight_range)
        for feed in made.feeds:
            wanted = outputs(found, feed, optimized=False)[0]
            assert np.abs(_outputs(student, feed) - wanted).max() <= 1.001 * step
            assert np.ptp(wanted) > 20 * step
        x = torch.from_numpy(next(iter(made.feeds[rounds].values())))
        optimizer.zero_grad()
        student.module(x)["y"].square().mean().backward()
        optimizer.step()
    for name, value in constants(found).items():
        is_zero_point = name.endswith("_zero_point") or not value.size
        trained = name.endswith(("_quantized", "_scale")) or name in _parameters(made)
        assert (value != constants(file)[name]).any() == (trained and not is_zero_point), name


def test_zeros_stay_and_only_what_is_none_moves(made: Made) -> None:
    file = made.quantized()
    student = trainable(file, made.source, _parameters(made), "safe")
    before = [weight.detach().clone() for weight in student.weights]
    optimizer = torch.optim.Adam(student.weights, 0.01)
    for feed in made.feeds:
        x = torch.from_numpy(next(iter(feed.values())))
        optimizer.zero_grad()
        student.module(x)["y"].square().mean().backward()
        optimizer.step()
    assert len(before) == len(made.source.possible)
    for old, new in zip(before, student.weights, strict=True):
        moved = new != old
        assert not moved[old == 0].any()
        assert moved[old != 0].double().mean() > 0.8
        assert (old == 0).any()
    roundings = check_weights(student.written(file, "safe"), made.source, ())
    assert len(roundings) == len(before)


def test_weights_that_stay_in_fp32_keep_their_zeros_too(tmp_path: Path) -> None:
    made = _made("residual", tmp_path)
    file = made.quantized(kept=("w1",))
    student = trainable(file, made.source, _parameters(made), "safe")
    optimizer = torch.optim.SGD([*student.weights, *student.others], 0.1)
    for feed in made.feeds:
        student.module(torch.from_numpy(feed["x"]))["y"].square().mean().backward()
        optimizer.step()
    found = constants(student.written(file, "safe"))["w1"]
    was = constants(made.source.model)["w1"]
    assert not found[was == 0].any()
    assert (found != was)[was != 0].any()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("learn_scales", [False, True])
def test_finetuning_brings_outputs_nearer_to_fp32(
    name: str, learn_scales: bool, tmp_path: Path
) -> None:
    # Ranges that cut off a lot, so that there is something to learn.
    made = _made(name, tmp_path, calibration="percentile", percentile=93.0)
    file, checked = made.quantized(), _checked(made, tmp_path)

    def tuned() -> tuple[onnx.ModelProto, Finetuned, Lessons]:
        lessons = Lessons(made)
        course = Course(20, 3e-3, learn_scales)
        tuning = Tuning(course, _parameters(made), lambda: lessons)
        return *finetune(file, made.source, "safe", tuning, checked), lessons

    found, done, lessons = tuned()
    assert lessons.events == ["begin", "end"]
    assert done.steps == len(lessons.losses) == 80
    assert done.first == pytest.approx(np.mean(lessons.losses[:8]))
    assert done.last < 0.9 * done.first

    def loss(model: onnx.ModelProto) -> float:
        pairs = zip(made.feeds, checked.expected, strict=True)
        return sum(
            float(divergence(
                {"y": torch.from_numpy(outputs(model, x)[0].copy())},
                {"y": torch.from_numpy(y["y"].copy())},
            ))
            for x, y in pairs
        )  # fmt: skip

    assert loss(found) < 0.9 * loss(file)
    moved = [
        name for name, value in constants(found).items()
        if name.endswith("_scale") and not value.ndim and value != constants(file)[name]
    ]  # fmt: skip
    assert bool(moved) == learn_scales
    assert tuned()[0].SerializeToString() == found.SerializeToString()


def test_gradients_of_a_rounded_activation() -> None:
    x = torch.tensor([[-3.0, -0.9, 0.2, 0.6, 1.1, 60.0]], requires_grad=True)
    scale = torch.tensor(0.25, requires_grad=True)
    y = fake_activation(x, scale, 4)
    # -12 + 4 and 240 + 4 of 255, -3.6, 0.8, 2.4, 4.4
    assert y.tolist() == [[-1.0, -1.0, 0.25, 0.5, 1.0, 60.0]]
    up = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    y.backward(up)
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0, 4.0, 8.0, 16.0, 32.0]]
    assert scale.grad is not None
    wanted = -4 * 1 + (-4 + 3.6) * 2 + 0.2 * 4 - 0.4 * 8 - 0.4 * 16
    assert float(scale.grad) == pytest.approx(wanted / math.sqrt(255 * 6), rel=1e-5)


def test_a_scale_grows_for_what_it_cuts_off() -> None:
    scale = torch.tensor(0.25, requires_grad=True)
    above = fake_activation(torch.tensor([[99.0]]), scale, 4)
    assert above.item() == 0.25 * 251
    above.backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(251 / math.sqrt(255))


def test_gradients_of_a_rounded_weight() -> None:
    w = torch.tensor([[0.5, 0.0, -1.27], [0.003, 0.2, 0.004]], requires_grad=True)
    rounded, scales = fake_weight(w, w != 0, torch.zeros(2), 0, "full")
    assert scales.flatten().tolist() == pytest.approx([0.01, 0.2 / 127])
    assert rounded[0].tolist() == pytest.approx([0.5, 0, -1.27])
    assert rounded[1].tolist() == pytest.approx([0.2 / 127 * 2, 0.2, 0.2 / 127 * 3])
    rounded.backward(torch.full((2, 3), 7.0))
    assert w.grad is not None
    assert w.grad.tolist() == [[7.0, 0.0, 7.0], [7.0, 7.0, 7.0]]
    coarse = fake_weight(w, w != 0, torch.tensor([1.0, 0.0]), 0, "full")[1]
    assert coarse.flatten().tolist() == pytest.approx([1, 0.2 / 127])


def test_no_pair_of_neighbours_overflows_after_training() -> None:
    w = torch.randn(16, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    scales = channel_scales(w, 0, "safe").reshape(-1, 1, 1, 1)
    rows = (w / scales).round().movedim(1, -1).reshape(16, -1)
    rows = torch.nn.functional.pad(rows, (0, 1)).reshape(16, -1, 2)
    assert 120 < rows.clamp(min=0).sum(2).max() <= 128
    assert -120 > rows.clamp(max=0).sum(2).min() >= -128


def test_the_loss_is_a_divergence() -> None:
    wanted = {"y": torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "z": torch.tensor([[[2.0, 0.0]]]),
              "n": torch.tensor([[3]])}  # fmt: skip
    assert float(divergence(wanted, wanted)) == 0
    found = {**wanted, "z": torch.tensor([[[1.0, 0.0]]])}
    assert float(divergence(found, wanted)) == pytest.approx(1 / 4)
    found = {**wanted, "y": torch.zeros(2, 2)}
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    kl = sum(v * math.log(2 * v) for v in (p, 1 - p, q, 1 - q)) / 2
    assert float(divergence(found, wanted)) == pytest.approx(kl, rel=1e-5)
    with pytest.raises(QuantizeError, match="needs an output of real numbers"):
        divergence({"n": wanted["n"]}, {"n": wanted["n"]})


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"^finetune 0: give a number of epochs, 1 or more$"):
        Course(0)
    for lr in (0, -1, 1, math.inf, math.nan):
        with pytest.raises(QuantizeError, match=r"^lr .*: give a number above 0 and below 1"):
            Course(1, lr)
    made = _made("residual", tmp_path)
    file, checked = made.quantized(), _checked(made, tmp_path)
    lessons = Lessons(made)
    nan = [*made.feeds[:2], {"x": made.feeds[0]["x"] * np.float32("nan")}]
    lessons.epoch = lambda number: (Batch((torch.from_numpy(f["x"]),)) for f in nan)  # type: ignore[method-assign]
    with pytest.raises(QuantizeError, match=r"not a number any more at step 3 of the finetuning"):
        finetune(file, made.source, "safe", Tuning(Course(1), (), lambda: lessons), checked)
    assert lessons.events[-1] == "end"
    lessons.epoch = lambda number: iter(())  # type: ignore[method-assign]
    with pytest.raises(QuantizeError, match="no batch to finetune on"):
        finetune(file, made.source, "safe", Tuning(Course(1), (), lambda: lessons), checked)


def test_a_file_that_the_module_does_not_compute_is_refused(tmp_path: Path) -> None:
    made = _made("residual", tmp_path)
    file = made.quantized()
    student = trainable(file, made.source, (), "safe")
    with torch.no_grad():
        student.weights[1].mul_(1.5)
    with pytest.raises(QuantizeError, match=r"its file and what torch makes of it differ, by \d"):
        _checked(made, tmp_path).compare(file, student)


def test_operators_without_a_gradient_are_named(tmp_path: Path) -> None:
    body = "a = Hardmax (x)\ny = Conv (a, w)"
    signature = "float[N,3,6,6] x => float[N,8,4,4] y"
    made = make(graph(signature, body, w=weight(8, 3, 3, 3)), tmp_path, 2, 3, 6, 6)
    with pytest.raises(QuantizeError, match=r"cannot train through .*, Hardmax\(\): leave"):
        trainable(made.quantized(), made.source, (), "safe")
