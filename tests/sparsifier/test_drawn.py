"""Each training step at a sparsity drawn for it; all else sees that of the schedule."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import st3fx
from st3fx import methods
from st3fx.errors import MethodError, TrainError
from st3fx.training.method import adjusted, make_method
from st3fx.training.settings import Settings

X = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
TOTAL = 12


def make(total: int = TOTAL, **schedule: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 40))
    own = st3fx.CubicSchedule(0.0, 0.3, draw=(0.5, 0.95), **schedule)
    method = st3fx.ST3(0.9, schedule=own)
    return st3fx.convert(model, X, method, total_steps=total, verify=False)


def step(model: nn.Module, sparsifier: st3fx.Sparsifier) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    sparsifier.step()


def zeros(model: Any) -> float:
    """Share of zeros of what a forward multiplies with."""
    weights = [model.get_submodule(name).weight.detach() for name in "02"]
    count: int = sum(int((w == 0).sum()) for w in weights)
    whole: int = sum(w.numel() for w in weights)
    return count / whole


def test_training_has_what_is_drawn_and_all_else_the_schedule() -> None:
    model, sparsifier = make()
    seen = set()
    for number in range(1, TOTAL):
        step(model, sparsifier)
        drawn, wanted = sparsifier.drawn, sparsifier.scheduled
        assert drawn is not None
        assert wanted is not None
        assert zeros(model) == pytest.approx(drawn, abs=1e-3)
        assert sparsifier.sparsity == zeros(model)
        twin = copy.deepcopy(model)
        folded = st3fx.fold(model)
        assert zeros(folded) == pytest.approx(wanted, abs=1e-3)
        model.eval()
        assert zeros(model) == zeros(twin.eval()) == zeros(folded) == sparsifier.sparsity
        model.train()
        assert zeros(model) == pytest.approx(drawn, abs=1e-3)
        if number > 0.3 * TOTAL:
            assert wanted == 0.9
            seen.add(drawn)
    assert len(seen) > 5
    assert min(seen) < 0.7
    step(model, sparsifier)
    assert sparsifier.drawn is None
    assert zeros(model) == pytest.approx(0.9, abs=1e-3)


def test_looking_at_it_changes_nothing() -> None:
    model, sparsifier = make()
    watched, its = make()
    for _ in range(TOTAL):
        step(model, sparsifier)
        step(watched, its)
        watched.eval()(X)
        copy.deepcopy(watched)
        its.refresh()
        watched.train()
    latent, its_latent = model.get_parameter("0.weight"), watched.get_parameter("0.weight")
    assert torch.equal(latent, its_latent)
    assert sparsifier.thresholds == its.thresholds


@pytest.mark.parametrize("whole", [True, False])
def test_a_training_goes_on_from_its_state(whole: bool) -> None:
    model, sparsifier = make()
    for _ in range(5):
        step(model, sparsifier)
    model.eval()(X)  # its thresholds are aside when the state is taken
    again, its = make()
    if whole:
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
    else:
        again.load_state_dict(
            {k: v for k, v in model.state_dict().items() if "st3fx" not in k}, strict=False
        )
        its.load_state_dict(sparsifier.state_dict())
    assert zeros(again.eval()) == pytest.approx(0.9, abs=1e-3)
    for each in (model.train(), again.train()):
        assert zeros(each) == pytest.approx(sparsifier.drawn, abs=1e-3)
    for _ in range(5):
        step(model, sparsifier)
        step(again, its)
    assert sparsifier.thresholds == its.thresholds


def test_averages_have_the_sparsity_of_the_schedule() -> None:
    model, sparsifier = make()
    step(model, sparsifier)
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(6):
        step(model, sparsifier)
        average.update_parameters(model)
    assert zeros(average.module.eval()) == pytest.approx(0.9, abs=1e-3)


def test_parts_in_eval_mode_train_at_what_is_drawn() -> None:
    model, sparsifier = make()
    for _ in range(6):
        step(model, sparsifier)
    model.get_submodule("0").eval()
    assert zeros(model) == pytest.approx(sparsifier.drawn, abs=1e-3)


def test_frozen_and_held_are_not_drawn() -> None:
    model, sparsifier = make()
    for _ in range(6):
        step(model, sparsifier)
    held = copy.deepcopy(model)
    other = st3fx.Sparsifier(held)
    other.set_sparsity(0.6)
    step(held, other)
    assert other.drawn is None
    assert zeros(held) == pytest.approx(0.6, abs=1e-3)
    sparsifier.freeze()
    for _ in range(2):
        step(model, sparsifier)
        assert sparsifier.drawn is None
        assert zeros(model) == pytest.approx(0.9, abs=1e-3)


def test_thresholds_between_updates_stay() -> None:
    torch.manual_seed(0)
    method = st3fx.ST3(schedule=st3fx.CubicSchedule(0.0, 0.2, draw=(0.5, 0.95)))
    model, sparsifier = st3fx.convert(
        nn.Linear(40, 60), X, method, total_steps=12, update_every=3, verify=False
    )
    assert sparsifier.target == 0.95
    levels = []
    for _ in range(9):
        step(model, sparsifier)
        levels.append(sparsifier.thresholds["weight"])
    assert levels[2] == levels[3] == levels[4] != levels[5] == levels[6]


def test_it_is_kept_in_bundles(tmp_path: Path) -> None:
    method = make_method(Settings(draw_sparsity=(0.5, 0.8), seed=7, ramp=(0.1, 0.4)))
    schedule = st3fx.CubicSchedule(0.1, 0.4, draw=(0.5, 0.8), seed=7)
    assert method == st3fx.ST3(0.8, schedule=schedule)
    read = methods.from_dict({**methods.to_dict(method)})
    assert read == method
    listed = {**methods.to_dict(method)}
    listed["schedule"] = {**listed["schedule"], "draw": [0.5, 0.8]}
    assert methods.from_dict(listed) == method
    # A training of a bundle may change a part of it.
    changed = adjusted(method, Settings(draw_sparsity=(0.6, 0.9), sparsity=0.9, seed=1))
    assert changed.schedule == st3fx.CubicSchedule(  # type: ignore[attr-defined]
        0.1, 0.4, draw=(0.6, 0.9), seed=1
    )
    kept = adjusted(method, Settings(ramp=(0.0, 0.5)))
    assert kept.schedule.draw == (0.5, 0.8)  # type: ignore[attr-defined]


def test_what_makes_no_sense_is_refused() -> None:
    draw = st3fx.CubicSchedule(draw=(0.5, 0.8))
    with pytest.raises(MethodError, match=r"sparsity 0.9 is not among those that are drawn, 0.5"):
        st3fx.ST3(0.9, schedule=draw)
    with pytest.raises(MethodError, match="nm:2:4 has one sparsity: there is none to draw"):
        st3fx.ST3(schedule=draw, granularity=st3fx.NM(2, 4))
    with pytest.raises(TrainError, match="dst learns its thresholds: no sparsity can be drawn"):
        make_method(Settings(method="dst", draw_sparsity=(0.5, 0.8)))
    with pytest.raises(TrainError, match="str learns its thresholds: no sparsity can be drawn"):
        adjusted(st3fx.STR(), Settings(draw_sparsity=(0.5, 0.8)))
    with pytest.raises(TrainError, match=r"give the least and the largest, e.g. 0.5,0.95"):
        Settings(draw_sparsity=(0.9, 0.5))
