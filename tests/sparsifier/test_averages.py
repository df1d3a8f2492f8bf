"""Averages of weights end, after fold, with the run's sparsity and their own exact threshold."""

from __future__ import annotations

import copy
import gc
import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEma, ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn
from torch.utils.flop_counter import FlopCounterMode

import st3fx
from st3fx.errors import StateError, TraceWarning

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


X = batch(99)[0]


def wrapped() -> tuple[Any, st3fx.Sparsifier]:
    """A part that has another share of zeros than the whole."""
    torch.manual_seed(0)
    last = nn.Linear(32, 32)
    part = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), last)
    model = nn.Sequential(part, nn.Linear(32, 32), nn.Linear(32, 2))
    nn.init.normal_(last.weight, std=0.01)
    method = st3fx.ST3(TARGET, schedule=st3fx.CubicSchedule(0.1, 0.6))
    return st3fx.convert(model, X, method, total_steps=STEPS, verify=False)


def part_of(model: Any) -> Any:
    return model[0]


def zeros_of(model: Any) -> float:
    owners = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = [module.weight == 0 for module in owners]
    return sum(int(zero.sum()) for zero in found) / sum(zero.numel() for zero in found)


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


def test_a_checkpoint_after_an_evaluation_of_other_weights_is_of_the_training() -> None:
    """It is saved before the model trains again, when thresholds are still the evaluation's."""
    model, sparsifier = make()
    for _ in range(20):
        sparsifier.step()
    expected, own = copy.deepcopy(sparsifier.state_dict()), model.state_dict()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(0.5)
        model.eval()(X)
        for value in model.parameters():
            value.mul_(2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name]), name
    for name, value in sparsifier.state_dict()["thresholds"].items():
        assert torch.equal(value, expected["thresholds"][name]), name


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


def test_an_average_of_a_frozen_model_has_no_more_zeros() -> None:
    """Its weights may be smaller than the fixed thresholds."""
    model, sparsifier = make()
    average = Lerp(model, 0.97)
    train(model, sparsifier, average.update, 20)
    sparsifier.freeze()
    with torch.no_grad():
        for parameter in average.module.parameters():
            parameter.mul_(0.5)
    share = sparsifier.sparsity
    folded = st3fx.fold(average.module)
    zeros = sum(int((weight == 0).sum()) for weight in weights(folded))
    assert zeros / sum(map(torch.numel, weights(folded))) == pytest.approx(share, abs=0.002)
    masks = [site.tensors("mask")[0] for site in sparsifier.run.bound()]
    assert not any(w[~m].any() for w, m in zip(weights(folded), masks, strict=True))
    assert torch.equal(average.module(X), folded(X))


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


def test_an_average_of_a_part() -> None:
    """It has the share of zeros that the part has in the whole, in use, folded and in a file."""
    model, sparsifier = wrapped()
    average = AveragedModel(model[0], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    snapshot = copy.deepcopy(model[0])
    train(model, sparsifier, lambda m: average.update_parameters(m[0]))
    part: Any = average.module
    share = zeros_of(part_of(st3fx.fold(model)))
    assert 0.1 < share != pytest.approx(TARGET, abs=0.01)
    folded = st3fx.fold(average)
    assert zeros_of(folded) == pytest.approx(share, abs=0.002)
    assert torch.equal(folded.eval()(X), part.eval()(X))
    assert zeros_of(part) == zeros_of(folded)
    file = io.BytesIO()
    torch.save(copy.deepcopy(part), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).eval()(X), folded(X))
    assert zeros_of(snapshot) == zeros_of(st3fx.fold(snapshot)) == 0
    with torch.no_grad():  # the weights of the original: its thresholds, too
        for ours, theirs in zip(snapshot.parameters(), model[0].parameters(), strict=True):
            ours.copy_(theirs)
        for ours, theirs in zip(snapshot.buffers(), model[0].buffers(), strict=True):
            ours.copy_(theirs)
    assert torch.equal(snapshot.eval()(X), model[0].eval()(X))


def test_an_average_of_a_part_whose_original_has_gone() -> None:
    model, sparsifier = wrapped()
    average = AveragedModel(model[0], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(model, sparsifier, lambda m: average.update_parameters(m[0]))
    share = zeros_of(part_of(st3fx.fold(model)))
    del model, sparsifier
    gc.collect()
    assert zeros_of(st3fx.fold(average)) == pytest.approx(share, abs=0.1)


def both(model: nn.Module, sparsifier: st3fx.Sparsifier) -> nn.Module:
    twin = copy.deepcopy(model)
    sparsifier.drop("4.weight")
    st3fx.Sparsifier(twin).drop("4.weight")
    return twin


def without_head(model: Any) -> Any:
    model[4] = nn.Identity()
    return model


DROPS: dict[str, Any] = {
    "then copied": lambda m, s: (s.drop("4.weight"), copy.deepcopy(m))[1],
    "after the copy": lambda m, s: (copy.deepcopy(m), s.drop("4.weight"))[0],
    "in both": both,
    "Identity in the copy": lambda m, _: without_head(copy.deepcopy(m)),
}


@pytest.mark.filterwarnings("ignore::st3fx.errors.DriftWarning")
@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_an_average_of_a_model_that_has_lost_a_site(drop: Any) -> None:
    model, sparsifier = make()
    average = drop(model, sparsifier)

    @torch.no_grad()
    def after(model: nn.Module) -> None:
        for ours, theirs in zip(average.parameters(), model.parameters(), strict=False):
            ours.lerp_(theirs, 0.2)

    train(model, sparsifier, after)
    own: Any = st3fx.fold(average)
    original: Any = st3fx.fold(model)
    for index in (0, 3):
        assert zeros_of(own[index]) == pytest.approx(zeros_of(original[index]), abs=0.03)
    assert torch.equal(own.eval()(X), average.eval()(X))


def test_an_average_whose_frozen_original_has_gone() -> None:
    model, sparsifier = make()
    average = Lerp(model)
    train(model, sparsifier, average.update, 20)
    sparsifier.freeze()
    train(model, sparsifier, average.update, 5)
    masks = [site.tensors("mask")[0] for site in sparsifier.run.bound()]
    del model, sparsifier
    gc.collect()
    folded = st3fx.fold(average.module)
    for weight, mask in zip(weights(folded), masks, strict=True):
        assert not weight[~mask].any()
    assert torch.equal(average.module(X), folded(X))


def flops_counted(model: nn.Module) -> Any:
    with FlopCounterMode(display=False):
        return model(X)


UNSEEN: dict[str, Any] = {
    "compile": lambda m: torch.compile(m, backend="eager")(X),
    "vmap": lambda m: torch.vmap(m)(X[None])[0],
    "make_fx": lambda m: make_fx(m)(X)(X),
    "FlopCounterMode": flops_counted,
    "export after eval": lambda m: torch.export.export(m.eval(), (X,)).module()(X),
}


@pytest.mark.filterwarnings("ignore::st3fx.errors.TraceWarning")
@pytest.mark.parametrize("use", UNSEEN.values(), ids=UNSEEN)
def test_an_average_that_only_transformed_code_runs(use: Any) -> None:
    model, sparsifier = make()
    average = Teacher(model)
    train(model, sparsifier, average.update)
    torch.testing.assert_close(use(average.module), st3fx.fold(average.module)(X))


def test_an_average_that_cannot_be_looked_at_is_refused_or_named() -> None:
    model, sparsifier = make()
    average = Teacher(model)
    train(model, sparsifier, average.update)
    with pytest.raises(StateError, match=r"call its eval\(\), or fold it, before"):
        torch.export.export(average.module, (X,))
    compiled: Any = torch.compile(average.module, backend="eager")
    with pytest.warns(TraceWarning, match=r"new ones at each call of its eval\(\)"):
        compiled(X)
    train(model, sparsifier, average.update, 2)
    compiled.eval()
    torch.testing.assert_close(compiled(X), st3fx.fold(average.module)(X))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("looked", [False, True])
def test_weights_that_are_swapped_in_without_a_trace(compiled: bool, looked: bool) -> None:
    model, sparsifier = make()
    train(model, sparsifier, lambda _: None)
    run: Any = torch.compile(model, backend="eager") if compiled else model
    model.eval()
    if looked:
        run(X)
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(0.01)
    if compiled:
        run.eval()
    torch.testing.assert_close(run(X), st3fx.fold(model).eval()(X))
    assert sparsifier.sparsity == pytest.approx(TARGET, abs=0.001)


def averaged_states(states: list[dict[str, Tensor]], *, cast: bool) -> dict[str, Tensor]:
    """As averages of all entries are made, whatever they hold."""
    mean = {key: sum(state[key].float() for state in states) / len(states) for key in states[0]}
    return {k: v.to(states[0][k].dtype) if cast else v for k, v in mean.items()}  # type: ignore[union-attr, misc]


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("first", ["another", "free"])
def test_masks_that_were_averaged_are_refused(cast: bool, first: str) -> None:
    states = []
    for index, name in enumerate((first, "frozen")):
        model, sparsifier = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1 * index)
        sparsifier.set_sparsity(TARGET)
        if name != "free":
            sparsifier.freeze()
        states.append(model.state_dict())
    model, _ = make()
    with pytest.raises(RuntimeError, match=r"3\.weight: its mask is an average of"):
        model.load_state_dict(averaged_states(states, cast=cast))
    model.load_state_dict(states[1])
    older = {k: v[:-3] if k.endswith("_mask") else v for k, v in states[1].items()}
    model.load_state_dict(older)  # without a checksum
    again = model.state_dict()
    assert all(torch.equal(again[key], states[1][key]) for key in again if "mask" in key)


@pytest.mark.parametrize("freeze", [False, True])
def test_an_average_of_a_state_dict_over_the_whole_run(freeze: bool) -> None:
    """Its flags are fractions, its sparsity that of no moment."""
    model, sparsifier = make()
    sparsifier.set_sparsity(0.2)
    if freeze:
        sparsifier.freeze()
    average = {key: value.clone().float() for key, value in model.state_dict().items()}

    def after(model: nn.Module) -> None:
        if sparsifier.steps == 3 and not freeze:
            sparsifier.set_sparsity(None)
        for key, value in model.state_dict().items():
            average[key].mul_(0.8).add_(value.float(), alpha=0.2)

    train(model, sparsifier, after)
    other, its = make()
    other.load_state_dict(average)
    assert (its.frozen, its.held) == (freeze, None if not freeze else pytest.approx(0.2))
    if not freeze:
        assert its.steps == pytest.approx(STEPS - 4, abs=1)
        require_exact(other, TARGET)  # which the schedule has at that step


@pytest.mark.filterwarnings("error::st3fx.errors.TargetWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_state_dict_in_lower_precision_has_its_exact_target(dtype: torch.dtype) -> None:
    model, sparsifier = make()
    train(model, sparsifier, lambda _: None)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    other, its = make()
    other.load_state_dict(state)
    require_exact(other, TARGET)
    assert its.run.sparsity == TARGET


def test_weights_that_are_swapped_in_before_the_model_is_compiled() -> None:
    model, sparsifier = make()
    train(model, sparsifier, lambda _: None)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.01)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), st3fx.fold(model)(X))


def test_a_read_notices_weights_that_were_swapped_in_without_a_trace() -> None:
    model: Any
    model, sparsifier = make()
    train(model, sparsifier, lambda _: None)
    model.eval()(X)
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(0.01)
    seen = model[3].weight
    assert torch.equal(seen, st3fx.fold(model).get_parameter("3.weight"))


def test_a_step_of_a_model_that_computes_its_weight_is_no_evaluation() -> None:
    """The weight is computed as in eval mode, to which the model is not switched for that."""
    layer = parametrizations.weight_norm(nn.Linear(8, 5))
    model, sparsifier = st3fx.convert(layer, X, st3fx.ST3(TARGET), total_steps=4, verify=False)
    train(model, sparsifier, lambda _: None, 4)
    assert model.training
    assert not sparsifier.run.suspect
    assert sparsifier.sparsity == pytest.approx(TARGET, abs=0.02)
