"""Steps are counted by the updates that were made, and what goes wrong is said."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import st3fx
from st3fx.errors import OptimizerWarning, StateError, TargetWarning
from st3fx.modules.marks import change_conversion

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


def make(total_steps: int | None = 12) -> tuple[nn.Module, st3fx.Sparsifier]:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return st3fx.convert(model, X, st3fx.ST3(0.5), total_steps=total_steps, verify=False)


def step(model: nn.Module, optimizer: Any, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (model(X).square().mean() * scale).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.LBFGS])
def test_an_attached_optimizer_counts(kind: Any) -> None:
    model, sparsifier = make()
    optimizer = kind(model.parameters(), 0.01)
    sparsifier.attach(optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for expected in range(1, 4):
        optimizer.step(closure)
        assert sparsifier.steps == expected
    with pytest.raises(StateError, match="leave step\\(\\) out"):
        sparsifier.step()
    with pytest.raises(StateError, match="attached already"):
        sparsifier.attach(optimizer)
    sparsifier.detach()
    optimizer.step(closure)
    assert sparsifier.steps == 3
    sparsifier.step()
    assert sparsifier.steps == 4


@pytest.mark.parametrize("fused", [False, True])
def test_what_a_gradient_scaler_skips_does_not_count(fused: bool) -> None:
    model, sparsifier = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=fused)
    sparsifier.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for index in range(6):
        optimizer.zero_grad()
        scale = torch.inf if index % 3 == 1 else 1.0
        scaler.scale(model(X).square().mean() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
    assert sparsifier.steps == 4


def test_a_step_that_makes_an_optimizers_state_does_not_count() -> None:
    """torch.distributed.checkpoint makes it for what it loads into, or saves before a step."""
    from torch.distributed.checkpoint import state_dict as saving

    model, sparsifier = make()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    sparsifier.attach(optimizer)
    state = saving.get_optimizer_state_dict(model, optimizer)
    assert (len(optimizer.state), sparsifier.steps) == (4, 0)
    model(X).sum().backward()
    optimizer.step()
    other, its_sparsifier = make()
    fresh = torch.optim.Adam(other.parameters(), 0.01)
    its_sparsifier.attach(fresh)
    saving.set_optimizer_state_dict(other, fresh, state)
    assert (sparsifier.steps, its_sparsifier.steps) == (1, 0)


def test_accumulated_batches_count_once() -> None:
    model, sparsifier = make()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    sparsifier.attach(optimizer)
    for _ in range(6):
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            accelerator.backward(model(X).square().mean())
            optimizer.step()
    assert sparsifier.steps == 2


def test_an_optimizer_of_other_weights_is_refused_or_named() -> None:
    original = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    before = torch.optim.SGD(original.parameters(), 0.1)
    model, sparsifier = st3fx.convert(original, X, total_steps=10, verify=False)
    with pytest.raises(StateError, match="SGD has none of the converted model's weights"):
        sparsifier.attach(before)
    with pytest.raises(StateError, match="object has no step hooks"):
        sparsifier.attach(object())
    for index in range(4):
        model(X).sum().backward()
        before.step()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sparsifier.step()
        assert [w.category for w in said].count(OptimizerWarning) == (index == 2)  # once


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.filterwarnings("error::st3fx.errors.OptimizerWarning")
def test_a_right_loop_is_not_warned(set_to_none: bool) -> None:
    model, sparsifier = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        step(model, optimizer)
        optimizer.zero_grad(set_to_none=set_to_none)
        sparsifier.step()
    skipped, its = make()  # a scaler has skipped the first step: gradients are infinite
    (skipped(X).sum() * torch.inf).backward()
    its.step()


def test_a_sparsity_that_was_set_is_held() -> None:
    model, sparsifier = make(total_steps=None)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sparsifier.set_sparsity(0.8)
    assert sparsifier.held == 0.8
    for _ in range(3):
        step(model, optimizer)
        sparsifier.step()
        assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
    again, other = make()
    again.load_state_dict(model.state_dict())
    assert (other.held, other.steps) == (0.8, 3)
    other.set_sparsity(None)
    assert other.held is None
    for _ in range(9):
        other.step()
    assert other.sparsity == pytest.approx(0.5, abs=0.01)
    sparsifier.set_sparsity(None)
    with pytest.raises(StateError, match="give total_steps="):
        sparsifier.step()


def test_a_training_has_the_target_of_its_own_method() -> None:
    """A bundle is trained to another sparsity than it was converted for."""
    model, sparsifier = make()
    change_conversion(model, method=st3fx.ST3(sparsity=0.25))
    for _ in range(12):
        sparsifier.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TargetWarning)
        folded = st3fx.fold(model)
    zeros = [(site, folded.get_parameter(site.name)) for site in sparsifier.plan.sites]
    share = sum(int((w == 0).sum()) for _, w in zeros) / sum(w.numel() for _, w in zeros)
    assert share == pytest.approx(0.25, abs=2e-3)


def test_fold_says_that_the_target_is_missed() -> None:
    model, sparsifier = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.warns(TargetWarning, match=r"sparsity 0 of the target 0.5: .* made 0 of 12 steps"):
        st3fx.fold(model)
    for _ in range(3):
        step(model, optimizer)
        sparsifier.step()
    with pytest.warns(TargetWarning, match=r"of the target 0.5: .* 3 of 12 steps; train to the"):
        st3fx.fold(copy.deepcopy(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", TargetWarning)
        sparsifier.set_sparsity(0.4)  # by hand is on purpose
        st3fx.fold(model)
        sparsifier.set_sparsity(None)
        for _ in range(9):
            sparsifier.step()
        st3fx.fold(model)


def cleared(model: nn.Module, sparsifier: st3fx.Sparsifier, optimizer: Any, _: int) -> None:
    model(X).sum().backward()
    optimizer.step()
    model.zero_grad()
    sparsifier.step()


def by_hand(model: nn.Module, sparsifier: st3fx.Sparsifier, optimizer: Any, index: int) -> None:
    model(X).sum().backward()
    optimizer.step()
    sparsifier.set_sparsity(0.1 * index)


def first(model: nn.Module, sparsifier: st3fx.Sparsifier, optimizer: Any, _: int) -> None:
    sparsifier.step()
    model(X).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("order", [cleared, by_hand, first])
@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizer_of_other_weights_is_named_in_any_order(order: Any, fused: bool) -> None:
    model, sparsifier = make()
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), 0.1, fused=fused)
    for index in range(2):
        order(model, sparsifier, other, index)
    with pytest.warns(OptimizerWarning, match="was the optimizer made before convert"):
        order(model, sparsifier, other, 2)


@pytest.mark.filterwarnings("error::st3fx.errors.OptimizerWarning")
@pytest.mark.parametrize("order", [cleared, by_hand, first])
@pytest.mark.parametrize("late", [False, True])
def test_an_optimizer_that_leaves_no_version_or_its_first_step_out(order: Any, late: bool) -> None:
    model, sparsifier = make()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
    for index in range(5):
        optimizer.param_groups[0]["lr"] = 0.0 if late and not index else 0.01
        order(model, sparsifier, optimizer, index)


def test_a_model_is_counted_by_one_optimizer_whoever_attaches_it() -> None:
    model, sparsifier = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(optimizer)
    other = st3fx.Sparsifier(model)
    with pytest.raises(StateError, match="attached already"):
        other.attach(optimizer)
    with pytest.raises(StateError, match=r"leave step\(\) out"):
        other.step()
    step(model, optimizer)
    assert other.steps == 1
    other.detach()
    other.attach(optimizer)
    del optimizer  # a cell of a notebook that is run twice makes another one
    gc.collect()
    again = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(again)
    step(model, again)
    assert sparsifier.steps == 2


@pytest.mark.parametrize("pickled", [False, True])
def test_a_copy_with_its_optimizer_is_attached(pickled: bool) -> None:
    model, sparsifier = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(optimizer)
    parts = (sparsifier, model, optimizer)
    its, twin, own = pickle.loads(pickle.dumps(parts)) if pickled else copy.deepcopy(parts)
    for _ in range(3):
        step(twin, own)
    assert (its.steps, sparsifier.steps) == (3, 0)
    alone, driver = copy.deepcopy((model, sparsifier))  # without the optimizer: by hand
    step(alone, torch.optim.SGD(alone.parameters(), 0.1))
    driver.step()
    assert driver.steps == 1


class Sam(torch.optim.Optimizer):
    """Two steps of an outer optimizer, of which the second makes the inner one's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, 0.1)

    def second_step(self) -> None:
        self.base_optimizer.step()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        closure()
        self.second_step()


@pytest.mark.parametrize("whole", [False, True])
def test_an_optimizer_that_drives_another_counts_once(whole: bool) -> None:
    model, sparsifier = make()
    optimizer = Sam(model.parameters())
    sparsifier.attach(optimizer)
    for _ in range(3):
        model(X).sum().backward()
        optimizer.step(lambda: None) if whole else optimizer.second_step()
    assert sparsifier.steps == 3
    sparsifier.detach()
    optimizer.second_step()
    assert sparsifier.steps == 3


class Pair(nn.Module):
    """A generator and a discriminator, as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.G, self.D = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, z: Tensor) -> Any:
        return self.D(self.G(z).tanh())


@pytest.mark.parametrize("method", [st3fx.ST3(0.8), st3fx.GMP(0.8), st3fx.Feather(0.8)])
@pytest.mark.parametrize("kept", [False, True])
def test_a_graph_outlives_a_step_that_left_its_weights_alone(method: Any, kept: bool) -> None:
    model: Any
    model, sparsifier = st3fx.convert(Pair(), X, method, total_steps=20, verify=False)
    of_d, of_g = (torch.optim.SGD(m.parameters(), 0.1) for m in (model.D, model.G))
    for _ in range(4 * kept):
        model(X).mean().backward()
        of_g.step()
        of_d.step()
        model.zero_grad()
        model.G(X)
        sparsifier.step()
    weights = list(model.G.parameters())
    fake = model.G(X).tanh()
    loss = (fake * torch.arange(8.0)).square().sum()
    expected = torch.autograd.grad(loss, weights, retain_graph=True)
    model.D(fake.detach()).mean().backward()
    of_d.step()
    sparsifier.step()
    assert all(map(torch.equal, torch.autograd.grad(loss, weights), expected))


@pytest.mark.parametrize("method", [st3fx.ST3(0.8), st3fx.GMP(0.8), st3fx.Feather(0.8)])
def test_backward_over_a_step_of_its_own_weights_is_autograds_error(method: Any) -> None:
    model, sparsifier = st3fx.convert(
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), X, method, total_steps=10
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        step(model, optimizer)
        sparsifier.step()
    loss = model(X).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    sparsifier.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_sparsity_set_by_hand_in_an_older_state_dict() -> None:
    model, sparsifier = make()
    sparsifier.set_sparsity(0.5)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("_mask")}
    del state["st3fx_sparsity"]
    other, its = make()
    other.load_state_dict(state)
    assert its.thresholds == sparsifier.thresholds
    for ours, theirs in zip(
        st3fx.fold(other).parameters(), st3fx.fold(model).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    its.step()
    assert its.sparsity == pytest.approx(its.run.scheduled(), abs=2e-3)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_state_dict_of_an_older_version(frozen: bool) -> None:
    """Masks were booleans of the weight's shape, and there only when frozen; no sparsity."""
    model, sparsifier = make()
    for _ in range(6):
        sparsifier.step()
    if frozen:
        sparsifier.freeze()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("_mask")}
    del state["st3fx_sparsity"]
    for site in sparsifier.run.bound() if frozen else ():
        owner = site.site.name.rpartition(".")[0]
        state[f"{owner}.st3fx_weight_mask"] = site.tensors("mask")[0]
    other, its = make()
    other.load_state_dict(state)
    assert (its.steps, its.frozen) == (6, frozen)
    assert its.thresholds == sparsifier.thresholds
    own = sparsifier.effective_weights()
    assert all(torch.equal(own[name], value) for name, value in its.effective_weights().items())
