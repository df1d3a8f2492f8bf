"""Averages of weights end, after fold, with the run's sparsity and their own exact threshold."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

import st3fx

TARGET, STEPS = 0.7, 30


def batch(index: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(index))
    return x, (x[:, 0] > 0).long()


def make() -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 2)
    )
    method = st3fx.ST3(TARGET, schedule=st3fx.CubicSchedule(0.1, 0.6))
    return st3fx.convert(model, batch(0)[0], method, total_steps=STEPS, verify=False)


ModelEmaV1: Any = ModelEma
ModelEmaOfV2: Any = ModelEmaV2


class OfFloats:
    """Every floating entry of the state dict is averaged in place, integers stay (detectors)."""

    def __init__(self, model: nn.Module, decay: float = 0.9) -> None:
        self.module, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    def update(self, model: nn.Module) -> None:
        source = model.state_dict()
        for key, value in self.module.state_dict().items():
            if value.dtype.is_floating_point:
                value.mul_(self.decay).add_((1 - self.decay) * source[key].detach())


class Teacher(OfFloats):
    """Parameters alone, written through ``data`` (mean teachers)."""

    def update(self, model: nn.Module) -> None:
        for ours, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            ours.data.mul_(self.decay).add_(theirs.data, alpha=1 - self.decay)


class Lerp(OfFloats):
    """``lerp_`` under ``no_grad``, buffers copied."""

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for ours, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)
        for buffer, value in zip(self.module.buffers(), model.buffers(), strict=True):
            buffer.copy_(value)


class Loads(OfFloats):
    """A new state dict is computed and loaded."""

    def update(self, model: nn.Module) -> None:
        own: dict[str, Tensor] = dict(self.module.state_dict())
        source = model.state_dict()
        for key, value in own.items():
            if value.is_floating_point() and "st3fx" not in key:
                own[key] = self.decay * value + (1 - self.decay) * source[key]
        self.module.load_state_dict(own)


class Half(OfFloats):
    """The average is kept as it is; a half-precision copy of it is what gets saved."""

    def finish(self) -> nn.Module:
        return copy.deepcopy(self.module).half().float()


def averaged(use_buffers: bool, ema: Any = None, multi: Any = None) -> Any:
    def wrap(model: nn.Module) -> AveragedModel:
        return AveragedModel(model, use_buffers=use_buffers, avg_fn=ema, multi_avg_fn=multi)

    return wrap


AVERAGES: dict[str, Any] = {
    "floats of the state dict": OfFloats,
    "the same, slowly": lambda m: OfFloats(m, 0.9999),
    "data": Teacher,
    "lerp": Lerp,
    "loaded": Loads,
    "saved in half precision": Half,
    "timm": lambda m: ModelEmaV1(m, 0.9),
    "timm V2": lambda m: ModelEmaOfV2(m, 0.9),
    "timm V2, its default": ModelEmaV2,
    "timm V3": lambda m: ModelEmaV3(m, 0.9),
    "timm V3, one by one": lambda m: ModelEmaV3(m, 0.9, foreach=False),
    "timm V3, no buffers": lambda m: ModelEmaV3(m, 0.9, exclude_buffers=True),
    "SWA": averaged(False),
    "SWA with buffers": averaged(True),
    "EMA of torch": averaged(False, multi=get_ema_multi_avg_fn(0.9)),
    "EMA of torch with buffers": averaged(True, multi=get_ema_multi_avg_fn(0.9)),
    "EMA of torch, one by one": averaged(True, ema=get_ema_avg_fn(0.9)),
}


def train(model: nn.Module, sparsifier: st3fx.Sparsifier, after: Any, steps: int = STEPS) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(optimizer)
    for index in range(steps):
        x, y = batch(index)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(model)
    sparsifier.detach()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.dim() > 1]


def require_exact(model: nn.Module, sparsity: float) -> None:
    """The folded model has the quantile's zeros, and is what the model computes in eval mode."""
    folded, latent = st3fx.fold(model), weights(model)
    scores = np.concatenate([weight.abs().double().numpy().ravel() for weight in latent])
    level = np.quantile(scores, sparsity) if sparsity else -1.0
    for weight, static in zip(latent, weights(folded), strict=True):
        assert torch.equal(static == 0, weight.abs().double() <= level)
    x = batch(99)[0]
    assert torch.equal(folded.eval()(x), model.eval()(x))
    assert st3fx.Sparsifier(model).thresholds["3.weight"] == pytest.approx(level, rel=1e-6)


@pytest.mark.filterwarnings("ignore::st3fx.errors.HalfPrecisionWarning")
@pytest.mark.parametrize("kind", AVERAGES.values(), ids=AVERAGES)
def test_an_average_ends_with_the_runs_sparsity(kind: Any) -> None:
    model, sparsifier = make()
    average = kind(model)
    update = getattr(average, "update", None) or average.update_parameters
    train(model, sparsifier, update)
    finished = average.finish() if hasattr(average, "finish") else None
    module = finished or getattr(average, "module", None) or average.ema
    require_exact(module, TARGET)
    require_exact(model, TARGET)  # the training itself has not been touched
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    require_exact(torch.load(file, weights_only=False), TARGET)
    other, _ = make()
    other.load_state_dict(module.state_dict())
    require_exact(other, TARGET)
    st3fx.Sparsifier(module).refresh()
    require_exact(module, TARGET)


def test_a_saved_average_that_nobody_has_looked_at() -> None:
    model, sparsifier = make()
    average = Teacher(model)
    train(model, sparsifier, average.update)
    state = copy.deepcopy(average.module.state_dict())
    other, _ = make()
    other.load_state_dict(state)
    require_exact(other, TARGET)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_mean_of_the_last_state_dicts(freeze: bool) -> None:
    model, sparsifier = make()
    states: list[dict[str, Tensor]] = []

    def after(model: nn.Module) -> None:
        if sparsifier.steps == 24 and freeze:
            sparsifier.freeze()
        if sparsifier.steps > 25:
            states.append(copy.deepcopy(model.state_dict()))

    train(model, sparsifier, after)
    mean = {key: torch.stack([s[key].double() for s in states]).mean(0) for key in states[0]}
    other, its = make()
    other.load_state_dict(mean)
    assert its.frozen is freeze
    folded = st3fx.fold(other)
    assert torch.equal(folded.eval()(batch(9)[0]), other.eval()(batch(9)[0]))
    if not freeze:
        require_exact(other, TARGET)


def test_a_snapshot_keeps_the_sparsity_of_its_moment() -> None:
    """The best checkpoint as a copy: its weights are as they were copied."""
    model, sparsifier = make()
    best: dict[str, Any] = {}
    average = OfFloats(model)

    def after(model: nn.Module) -> None:
        average.update(model)
        if sparsifier.steps == 12:
            best.update(
                model=copy.deepcopy(model), average=copy.deepcopy(average.module),
                sparsity=sparsifier.sparsity, target=sparsifier.scheduled,
            )  # fmt: skip

    train(model, sparsifier, after)
    assert 0.4 < best["target"] < TARGET
    assert st3fx.Sparsifier(best["model"]).sparsity == best["sparsity"]
    require_exact(best["model"], best["target"])
    require_exact(best["average"], best["target"])
    require_exact(average.module, TARGET)


def test_an_average_in_eval_mode_on_the_way() -> None:
    model, sparsifier = make()
    average = Teacher(model)
    seen = []

    def after(model: nn.Module) -> None:
        average.update(model)
        if sparsifier.steps % 6 == 0:
            seen.append(st3fx.Sparsifier(average.module).sparsity - (sparsifier.scheduled or 0))

    train(model, sparsifier, after)
    assert seen == pytest.approx([0.0] * 5, abs=1e-3)


def test_weights_that_are_swapped_in_for_an_evaluation() -> None:
    """Averages take the place of the weights while the model is evaluated, and leave again."""
    runs = []
    for swapping in (False, True):
        model, sparsifier = make()
        average = [p.detach().clone() for p in model.parameters()]

        def after(model: nn.Module, sparsifier: Any = sparsifier, average: Any = average) -> None:
            for ours, theirs in zip(average, model.parameters(), strict=True):
                ours.lerp_(theirs.detach(), 0.1)
            if sparsifier.steps % 5 or not swapping:  # noqa: B023
                return
            kept = [p.detach().clone() for p in model.parameters()]
            buffers = [b.clone() for b in model.buffers()]
            for values in (average, kept):
                for parameter, value in zip(model.parameters(), values, strict=True):
                    parameter.data.copy_(value)
                if values is average:
                    model.eval()
                    share = sparsifier.sparsity
                    assert share == pytest.approx(sparsifier.scheduled, abs=1e-3)
                    model(batch(50)[0])
            model.train()
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)

        train(model, sparsifier, after)
        runs.append(model.state_dict())
    different = [key for key, value in runs[0].items() if not torch.equal(value, runs[1][key])]
    assert set(different) <= {"st3fx_sparsity"}  # which says that thresholds are to be looked at


def test_batch_norm_statistics_of_an_average() -> None:
    model, sparsifier = make()
    average = AveragedModel(model)
    train(model, sparsifier, average.update_parameters)
    update_bn([batch(index)[0] for index in range(3)], average)
    require_exact(average.module, TARGET)


def test_an_average_of_a_frozen_model_has_its_masks() -> None:
    model, sparsifier = make()
    average = Teacher(model)
    train(model, sparsifier, average.update, 20)
    sparsifier.freeze()
    train(model, sparsifier, average.update, 5)
    masks = [site.tensors("mask")[0] for site in sparsifier.run.bound()]
    for weight, mask in zip(weights(st3fx.fold(average.module)), masks, strict=True):
        assert not weight[~mask].any()
    assert torch.equal(average.module(batch(9)[0]), st3fx.fold(average.module)(batch(9)[0]))


def test_a_copy_that_is_driven_follows_no_more() -> None:
    model, sparsifier = make()
    train(model, sparsifier, lambda _: None, 10)
    twin = copy.deepcopy(model)
    st3fx.Sparsifier(twin).set_sparsity(0.3)
    train(model, sparsifier, lambda _: None, STEPS - 10)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    require_exact(twin, 0.3)
    require_exact(model, TARGET)
