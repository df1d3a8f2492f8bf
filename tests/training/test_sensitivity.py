from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import st3fx
from st3fx.errors import DataError, MethodError, StateError, TrainError
from st3fx.training.sensitivity import SensitivityResult, read_sensitivity, score


class Net(nn.Module):
    """The first layer decides alone; the second counts by a hundredth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.first(x) + 0.01 * self.second(x)
        return out


def fresh() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.first.weight.mul_(20)
    return net


def made(method: Any = None) -> nn.Module:
    method = method or st3fx.GMP(0.5)
    return st3fx.convert(fresh(), torch.randn(2, 8), method, total_steps=4)[0]


def data(model: nn.Module, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Inputs with the classes that the model itself gives."""
    inputs = torch.randn(count, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        targets = model.eval()(inputs).argmax(1)
    return list(zip(inputs.split(16), targets.split(16), strict=True))


def test_the_layer_that_decides_costs_most() -> None:
    model = made()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines: list[str] = []
    result = st3fx.sensitivity(model, data(model), (0.75, 0.5), progress=lines.append)
    assert [layer.name for layer in result.layers] == ["first.weight", "second.weight"]
    assert [layer.name for layer in result.by_cost] == ["first.weight", "second.weight"]
    first, second = result.layers
    assert first.rise > 10 * abs(second.rise)
    assert [point.sparsity for point in first.points] == [0.5, 0.75]
    assert [point.zeros for point in first.points] == [16, 24]
    assert result.top1 == 1.0
    assert result.samples == 40
    assert result.sparsity == 0
    assert result.saved(first, 16) == (0.25, 0.25)
    assert lines[0] == "scoring the model as it is"
    assert lines[1] == "first.weight: evaluation 1 of 4"
    assert lines[2].startswith("first.weight: evaluation 2 of 4, about 0:0")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "method",
    [
        st3fx.GMP(0.5), st3fx.ST3(0.5), st3fx.Feather(0.5), st3fx.ST3(0.5, normalize="sigma"),
        st3fx.GMP(0.5, granularity=st3fx.Block(4)), st3fx.GMP(granularity=st3fx.NM(2, 4)),
    ],
)  # fmt: skip
def test_a_layer_is_pruned_as_the_method_does_it(method: Any) -> None:
    """By the numbers of the model with its own threshold, and the other layer as it is."""
    model = made(method)
    test = data(model)
    result = st3fx.sensitivity(model, test, (0.5,))
    for name in ("first", "second"):
        alone, sparsifier = st3fx.convert(
            fresh(), torch.randn(2, 8), method, include=[f"{name}.weight"], total_steps=4
        )
        sparsifier.set_sparsity(0.5)
        layer = next(layer for layer in result.layers if layer.name == f"{name}.weight")
        loss, top1 = score(alone.eval(), test)
        point = layer.points[0]
        assert (point.loss, point.top1) == pytest.approx((loss, top1), abs=1e-6)
        assert point.zeros == 16
        assert point.loss_rise == pytest.approx(loss - result.loss)
        assert point.top1_drop == pytest.approx(result.top1 - top1)


def test_the_others_stay_as_they_are_in_a_sparse_model() -> None:
    model = made()
    sparsifier = st3fx.Sparsifier(model)
    sparsifier.set_sparsity(0.5)
    test = data(model)
    result = st3fx.sensitivity(model, test, (0.0, 0.9))
    assert result.sparsity == 0.5
    assert sum(layer.zeros for layer in result.layers) == 32
    assert [point.zeros for point in result.layers[0].points] == [0, 28]
    weights = sparsifier.effective_weights()
    x, y = (torch.cat(parts) for parts in zip(*test, strict=True))
    dense = fresh()
    with torch.no_grad():
        second = F.linear(x, weights["second.weight"], dense.second.bias)
        logits = dense.first(x) + 0.01 * second
    point = result.layers[0].points[0]
    assert point.loss == pytest.approx(float(F.cross_entropy(logits, y)), abs=1e-5)


@pytest.mark.parametrize("method", [st3fx.DST(), st3fx.STR()])
def test_learned_thresholds_stay_and_the_smallest_go(method: Any) -> None:
    model = made(method)
    result = st3fx.sensitivity(model, data(model), (0.5,))
    assert [layer.points[0].zeros for layer in result.layers] == [16, 16]
    assert result.layers[0].rise > result.layers[1].rise


def test_a_frozen_model_keeps_its_zeros() -> None:
    model = made()
    sparsifier = st3fx.Sparsifier(model)
    sparsifier.set_sparsity(0.5)
    sparsifier.freeze()
    zeros = [int((w == 0).sum()) for w in sparsifier.effective_weights().values()]
    result = st3fx.sensitivity(model, data(model), (0.1, 0.9))
    assert [layer.points[0].zeros for layer in result.layers] == zeros
    assert [layer.points[1].zeros for layer in result.layers] == [29, 29]


def test_some_samples_are_the_first(tmp_path: Path) -> None:
    model = made()
    test = data(model)
    result = st3fx.sensitivity(model, test, (0.5,), images=20)
    assert result.samples == 20
    same = st3fx.sensitivity(model, [test[0], (test[1][0][:4], test[1][1][:4])], (0.5,))
    assert [one.points for one in same.layers] == [one.points for one in result.layers]


def test_a_result_is_written_and_read(tmp_path: Path) -> None:
    model = made()
    result = st3fx.sensitivity(model, data(model), (0.5, 0.9))
    path = tmp_path / "sensitivity.json"
    result.write(path)
    assert read_sensitivity(path) == result
    values = json.loads(path.read_text())
    for change, message in (
        ({"format": "x"}, "is not the result of"), ({"format_version": 2}, "reads up to 1"),
        ({"samples": 0}, "sensitivity.json"), ({"top1": 0.5}, "sensitivity.json"),
    ):  # fmt: skip
        path.write_text(json.dumps(values | change))
        with pytest.raises(TrainError, match=message):
            read_sensitivity(path)
    with pytest.raises(TrainError, match="cannot read"):
        read_sensitivity(tmp_path / "nowhere.json")
    with pytest.raises(TrainError, match="cannot write"):
        result.write(tmp_path / "no" / "x.json")
    assert isinstance(dataclasses.replace(result, layers=()), SensitivityResult)


def test_mistakes_are_one_line() -> None:
    model = made()
    with pytest.raises(StateError, match="Net is not converted"):
        st3fx.sensitivity(fresh(), data(model))
    with pytest.raises(MethodError, match=r"sparsity 1\.0 is outside"):
        st3fx.sensitivity(model, data(model), (0.5, 1.0))
    with pytest.raises(MethodError, match="no sparsity to try"):
        st3fx.sensitivity(model, data(model), ())
    with pytest.raises(MethodError, match="nm:2:4"):
        st3fx.sensitivity(made(st3fx.GMP(granularity=st3fx.NM(2, 4))), data(model), (0.9,))
    with pytest.raises(DataError, match="no test sample"):
        st3fx.sensitivity(model, [])
    with pytest.raises(DataError, match="pairs of inputs and targets"):
        st3fx.sensitivity(model, [torch.zeros(2, 8)])
