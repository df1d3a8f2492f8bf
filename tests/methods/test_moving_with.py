"""Masks that move, with what else a training has: compilers, gradient scalers, torch.func, copies.

Several processes are in ``tests/moving_processes.py``.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import st3fx
from st3fx import ACDC, LRR, GraNet, ProbMask, RigL
from st3fx.training.optim import parameter_groups
from tests.methods.test_moving import METHODS, X, Y, backward, converted, masks, net, sgd, step
from tests.training.runs import settings

STEPS = 40
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Uneven(nn.Sequential):
    """Twelve sites that lose their first weights one after another as the sparsity rises."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for index in range(11):
            conv = nn.Conv2d(3 if index == 0 else 6, 6, 3, padding=1)
            with torch.no_grad():
                conv.weight.sign_().mul_(1.3**index * (1 + torch.rand_like(conv.weight)))
            layers += [conv, nn.BatchNorm2d(6), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(384, 5))


LINE = st3fx.CubicSchedule(0.0, 1.0, power=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "most"),
    [
        (RigL(0.9, interval=1), 1),
        (GraNet(0.9, interval=1, initial=0.0, schedule=LINE), 2),
        (ACDC(0.9), 2),
        (LRR(0.9, cycles=4), 2),
        (ProbMask(0.9), 3),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_compiled_whole_masks_are_those_of_eager_and_moves_compile_nothing(
    method: Any, most: int
) -> None:
    """Another graph is that of another phase: dense, with masks, with a mask that is fixed."""
    results, count = [], 20
    for compiled in (False, True):
        model, driver = st3fx.convert(Uneven(), X, method, total_steps=count, verify=False)
        # Weights that stay keep the order in which sites lose their first ones.
        optimizer = torch.optim.SGD(model.parameters(), 0.01 if method.name == "rigl" else 1e-4)
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        call: Any = torch.compile(model, fullgraph=True, backend=counter) if compiled else model
        found = []
        for _ in range(count):
            nn.functional.cross_entropy(call(X), Y).backward()
            optimizer.step()
            optimizer.zero_grad()
            driver.step()
            found.append(masks(driver))
        assert counter.frame_count <= most
        results.append((found, model.state_dict()))
    (eager, before), (other, after) = results
    for one, two in zip(eager, other, strict=True):
        assert all(torch.equal(mask, two[name]) for name, mask in one.items())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    if method.name == "granet":  # it is what it says it is: sites get masks at different steps
        full = [sum(bool(mask.all()) for mask in now.values()) for now in eager]
        assert len(set(full)) >= 8


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", [RigL(0.8, interval=1), GraNet(0.8, interval=1)],
                         ids=["rigl", "granet"])  # fmt: skip
def test_a_step_that_a_scaler_skips_moves_nothing(method: Any, fused: bool) -> None:
    """Nor do its gradients grow anything at the next step: as if it had never been."""
    results = []
    for skips in (False, True):
        model, driver = converted(method)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, fused=fused)
        driver.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
        for number in range(12):
            if skips and number % 3 == 1:
                before = masks(driver)
                scaler.scale(backward_loss(model) * torch.inf).backward()
                scaler.step(optimizer)
                scaler.update(4.0)
                assert all(torch.equal(before[n], mask) for n, mask in masks(driver).items())
                optimizer.zero_grad()
            scaler.scale(backward_loss(model)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert driver.steps == 12
        results.append(model.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def backward_loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


@methods
def test_under_autocast_masks_have_their_counts(method: Any) -> None:
    model, driver = converted(method)
    optimizer = sgd(model)
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(X).float(), Y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        driver.step()
        gone = sum(gone for gone, _ in driver.pruned().values())
        assert abs(gone - (driver.scheduled or 0.0) * driver.plan.numel) <= 1


@methods
def test_gradients_of_torch_func_arrive_as_backward_leaves_them(method: Any) -> None:
    model, driver = converted(method)
    optimizer, seen = sgd(model), set()
    for _ in range(8):
        parameters = {name: p.detach() for name, p in model.named_parameters()}

        def loss(own: dict[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(torch.func.functional_call(model, own, (X,)), Y)

        found = torch.func.grad(loss)(parameters)
        backward(model)
        for name, mask in masks(driver).items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
            seen.add(bool(gradient[~mask].any()))
        optimizer.step()
        optimizer.zero_grad()
        driver.step()
    assert (True in seen) is not isinstance(method, ACDC)


@methods
@pytest.mark.parametrize("at", [5, 6, 8, 20])
def test_a_copy_of_all_goes_on_as_the_original(method: Any, at: int) -> None:
    model, driver = converted(method)
    optimizer = sgd(model)
    for _ in range(at):
        step(model, optimizer, driver)
    other, second, its_driver = copy.deepcopy((model, optimizer, driver))
    for _ in range(8):
        step(other, second, its_driver)  # first: until its first step a copy follows the original
        step(model, optimizer, driver)
    a, b = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


@methods
def test_averages_and_pickles_are_as_sparse_as_the_training(method: Any) -> None:
    model, driver = converted(method)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = sgd(model)
    for number in range(1, STEPS + 1):
        step(model, optimizer, driver)
        average.update_parameters(model)
        if number % 7:
            continue
        own = st3fx.Sparsifier(average.module)
        average.eval()(X)
        for name, mask in masks(driver).items():
            assert not own.effective_weights()[name][~mask].any()
        twin = pickle.loads(pickle.dumps(average.module))
        assert torch.equal(twin.eval()(X), average.module.eval()(X))
    average.eval()(X)
    assert st3fx.Sparsifier(average.module).sparsity == driver.sparsity


def scheduled(model: nn.Module, driver: st3fx.Sparsifier) -> tuple[Any, Any]:
    """An optimizer, and a learning rate that is rewound with each cycle."""
    method, optimizer = driver.method, sgd(model)
    assert isinstance(method, LRR)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - method.progress(step, STEPS)
    )
    return optimizer, schedule


@pytest.mark.parametrize("at", [5, 15, 20, 25, 35])
def test_cycles_go_on_with_optimizer_and_schedule(at: int) -> None:
    """From the middle of each of four cycles, and from the moment of a rewind; bit for bit."""
    model, driver = converted(LRR(0.9, cycles=4))
    optimizer, schedule = scheduled(model, driver)
    rates: list[float] = []
    saved: Any = None
    for number in range(STEPS):
        if number == at:
            states = model.state_dict(), optimizer.state_dict(), schedule.state_dict()
            saved = copy.deepcopy(states)
        rates.append(optimizer.param_groups[0]["lr"])
        momentum = optimizer.state[model.get_parameter("2.weight")].get("momentum_buffer")
        assert number == 0 or (momentum is not None and bool(momentum.any()))  # rewound or not
        step(model, optimizer, driver)
        schedule.step()
    assert rates[:10] == rates[10:20] == rates[20:30] == rates[30:]
    assert rates[0] == 0.05 > rates[9]
    other, its_driver = converted(LRR(0.9, cycles=4))
    second, its_schedule = scheduled(other, its_driver)
    other.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    its_schedule.load_state_dict(saved[2])
    for number in range(at, STEPS):
        assert second.param_groups[0]["lr"] == rates[number]
        step(other, second, its_driver)
        its_schedule.step()
    a, b = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_the_driver_gives_probabilities_no_weight_decay(tmp_path: Any) -> None:
    """Decay would pull all of them down alike, and the budget them up again."""
    model, driver = st3fx.convert(net(), X, ProbMask(0.9), total_steps=STEPS, verify=False)
    own = settings(tmp_path, method="probmask", opt="adam", lr=0.006, weight_decay=0.1)
    groups = parameter_groups(model, own)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    probabilities = driver.threshold_parameters()
    assert len(probabilities) == 3
    assert {decays[id(parameter)] for parameter in probabilities} == {0.0}
    assert decays[id(model.get_parameter("2.weight"))] == 0.1
