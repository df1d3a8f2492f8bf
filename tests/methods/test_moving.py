"""Masks that move: counts and choices against NumPy; where gradients arrive; trainings."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import Tensor, nn

import st3fx
from st3fx import ACDC, Block, Channels, GraNet, RigL
from st3fx.cli import main
from st3fx.errors import MethodError, OptimizerWarning, PlanError, StateError
from st3fx.methods.moving import OPERATOR
from st3fx.sparsity.granularity import Grouping
from st3fx.sparsity.masks import (
    GROWING,
    MASKED,
    Units,
    cosine,
    drop_and_grow,
    erdos_renyi_kernel,
    uniform,
    whole_counts,
)

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5
STEPS = 40

METHODS = {
    "rigl": RigL(0.9, interval=3),
    "granet": GraNet(0.9, interval=3),
    "granet from dense": GraNet(0.9, interval=3, initial=0.0),
    "acdc": ACDC(0.9),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
growing = pytest.mark.parametrize(
    "method", [m for m in METHODS.values() if not isinstance(m, ACDC)], ids=list(METHODS)[:3]
)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(256, 5),
    )  # fmt: skip


def converted(method: Any, steps: int | None = STEPS) -> tuple[nn.Module, st3fx.Sparsifier]:
    return st3fx.convert(net(), X, method, total_steps=steps, verify=False)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def backward(model: nn.Module, sample: slice = slice(None)) -> float:
    loss = nn.functional.cross_entropy(model(X[sample]), Y[sample])
    loss.backward()
    return loss.item()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, driver: st3fx.Sparsifier) -> float:
    loss = backward(model)
    optimizer.step()
    optimizer.zero_grad()
    driver.step()
    return loss


def masks(driver: st3fx.Sparsifier) -> dict[str, Tensor]:
    """All masks, in full."""
    found = {}
    for item in driver.run.bound():
        mask = item.tensors("mask")[0]
        full = torch.ones(item.site.shape, dtype=torch.bool)
        found[item.site.name] = mask.clone() if mask.numel() else full
    return found


# --- the mathematics


def reference(
    mask: NDArray[Any], weight: NDArray[Any], gradient: NDArray[Any], fraction: float
) -> NDArray[Any]:
    """Drop by magnitude, grow by gradient, with sorts; values must be different."""
    kept = int(mask.sum())
    going = int(fraction * kept)
    order = np.argsort(np.where(mask, np.abs(weight), np.inf), axis=None)
    left = mask.ravel().copy()
    left[order[:going]] = False
    order = np.argsort(np.where(left, -np.inf, np.abs(gradient).ravel()))
    left[order[len(order) - going :]] = True
    return left.reshape(mask.shape)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 1.0])
def test_drop_and_grow_is_that_of_sorts(fraction: float) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, gradient = (torch.randn(12, 5, 3, 3, generator=generator) for _ in range(2))
    mask = torch.rand(weight.shape, generator=generator) < 0.3
    found = drop_and_grow(Units(weight.shape, None, mask.device), mask, weight, gradient, fraction)
    expected = reference(mask.numpy(), weight.numpy(), gradient.numpy(), fraction)
    assert np.array_equal(found.numpy(), expected)
    assert found.sum() == mask.sum()


def test_among_equals_counts_are_exact_and_places_decide() -> None:
    units = Units((100,), None, torch.device("cpu"))
    everything = torch.ones(100, dtype=torch.bool)
    for count in (0, 1, 37, 99, 100):
        taken = units.largest(torch.ones(100), everything, count)
        assert int(taken.sum()) == count
    some, more = (units.largest(torch.ones(100), everything, n) for n in (30, 60))
    assert bool((some <= more).all())


def test_groups_go_as_a_whole_and_a_short_one_counts_as_what_it_has() -> None:
    """Rows of 10 inputs in blocks of 4: 4, 4, 2."""
    units = Units((6, 10), Grouping((1,), 0, 4, 1), torch.device("cpu"))
    assert sorted(units.sizes.tolist()) == [2] * 6 + [4] * 12
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(3))
    kept = units.largest(units.values(weight), torch.ones(18, dtype=torch.bool), 30)
    mask = units.mask(kept)
    assert torch.equal(units.flags(mask), kept)
    assert int(mask.sum()) == units.weight_of(kept) == 30
    rows = mask.split((4, 4, 2), dim=1)
    assert all(torch.equal(part.all(1), part.any(1)) for part in rows)
    norms = torch.cat([part.square().mean(1).sqrt() for part in weight.split((4, 4, 2), dim=1)])
    best = torch.cat([part.any(1) for part in rows])
    longer = torch.tensor([4] * 12 + [2] * 6) == 4  # a shorter one may have filled the rest
    assert norms[best & longer].min() > norms[~best & longer].max()
    assert norms[best].sort().values[1] > norms[~best].sort(descending=True).values[1]


def test_the_cosine_of_the_fraction() -> None:
    assert cosine(0.3, 0, 75) == pytest.approx(0.3)
    assert cosine(0.3, 37.5, 75) == pytest.approx(0.15)
    assert cosine(0.3, 75, 75) == cosine(0.3, 90, 75) == pytest.approx(0.0, abs=1e-15)


def test_erdos_renyi_kernel_and_layers_that_stay_dense() -> None:
    shapes = [(64, 3, 3, 3), (64, 64, 3, 3), (10, 64)]
    counts = [1728, 36864, 640]
    densities = erdos_renyi_kernel(shapes, counts, 0.1)
    kept = [d * n for d, n in zip(densities, counts, strict=True)]
    assert sum(kept) == pytest.approx(0.1 * sum(counts))
    raw = [sum(shape) / n for shape, n in zip(shapes, counts, strict=True)]
    assert densities[2] == 1.0  # it would have had more
    assert densities[0] / densities[1] == pytest.approx(raw[0] / raw[1])
    assert erdos_renyi_kernel(shapes, counts, 1.0) == [1.0, 1.0, 1.0]


def test_uniform_leaves_the_first_layer_dense_where_it_can() -> None:
    first, *others = uniform([100, 1000, 900], 0.1)
    assert first == 1.0
    assert others == pytest.approx([100 / 1900] * 2)
    assert uniform([1000, 100], 0.1) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("density", [0.013, 0.1, 0.5, 0.999])
def test_whole_counts_reach_the_total(density: float) -> None:
    counts = [1728, 36864, 640]
    kept = whole_counts([density] * 3, counts, [1, 1, 1], [1, 1, 1])
    assert abs(sum(kept) - density * sum(counts)) <= 1
    blocks = whole_counts([density] * 3, counts, [1, 4, 4], [1, 1, 1])
    assert abs(sum(blocks) - density * sum(counts)) <= 4
    assert all(k % size == 0 for k, size in zip(blocks, (1, 4, 4), strict=True))


# --- the operator


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_where_gradients_arrive(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 5).to(dtype).requires_grad_()
    mask, upstream = torch.rand(6, 5) < 0.5, torch.randn(6, 5).to(dtype)
    for level, expected in ((MASKED, upstream * mask), (GROWING, upstream)):
        effective = OPERATOR.op(weight, torch.tensor(level), mask)
        assert torch.equal(effective.detach(), torch.where(mask, weight.detach(), 0.0))
        assert not torch.signbit(effective[~mask]).any()
        weight.grad = None
        effective.backward(upstream)
        assert torch.equal(weight.grad, expected)  # type: ignore[arg-type]


# --- a model in training


@methods
def test_every_step_has_exactly_the_sparsity_of_the_schedule(method: Any) -> None:
    model, driver = converted(method)
    optimizer, numel = sgd(model), driver.plan.numel
    assert abs(driver.sparsity - method.start) * numel <= 1
    first = last = 0.0
    for number in range(STEPS):
        last = step(model, optimizer, driver)
        first = first or last
        gone = sum(gone for gone, _ in driver.pruned().values())
        assert abs(gone - (driver.scheduled or 0.0) * numel) <= 1, number
        assert driver.scheduled == driver.run.sparsity
    assert driver.scheduled == 0.9
    assert driver.reached
    assert last < first
    folded = st3fx.fold(model)
    assert torch.equal(folded.eval()(X), model.eval()(X))
    names = dict(folded.named_parameters())
    assert all(not names[name][~mask].any() for name, mask in masks(driver).items())


@growing
@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
def test_pruned_weights_and_their_momentum_are_zero_after_a_move(method: Any, adam: bool) -> None:
    model, driver = converted(method)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3) if adam else sgd(model)
    moves = 0
    for _ in range(STEPS):
        before = masks(driver)
        step(model, optimizer, driver)
        after = masks(driver)
        total = driver.total_steps
        assert total is not None
        if not driver.method.moves_at(driver.steps, total):  # type: ignore[attr-defined]
            assert all(torch.equal(before[name], mask) for name, mask in after.items())
            continue
        moves += 1
        for name, mask in after.items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any()
            stays = before[name] & mask
            assert not weight[mask & ~stays].any()  # what comes begins at 0
            for value in optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    assert not value[~stays].any()
                    assert value[stays].any()
    assert moves >= 5


def test_a_move_is_that_of_the_gradient_of_its_step() -> None:
    """RigL's masks from a step's own dense gradients and weights, layer by layer."""
    method = RigL(0.8, interval=4, fraction=0.5)
    model, driver = converted(method, 100)
    optimizer = sgd(model)
    for _ in range(3):
        step(model, optimizer, driver)
    before = masks(driver)
    dense = st3fx.fold(model)  # its gradients are those by the effective weights
    dense.train()
    backward(dense)
    wanted = {name: dense.get_parameter(name).grad for name in before}
    backward(model)
    optimizer.step()
    moved = {name: model.get_parameter(name).detach().clone() for name in before}
    optimizer.zero_grad()
    driver.step()
    fraction = cosine(0.5, 4, 75)
    changed = 0
    for name, mask in masks(driver).items():
        gradient = wanted[name]
        assert gradient is not None
        expected = reference(before[name].numpy(), moved[name].numpy(), gradient.numpy(), fraction)
        assert np.array_equal(mask.numpy(), expected)
        changed += int((mask ^ before[name]).sum())
    assert changed > 50


@growing
def test_the_optimizer_gets_no_gradient_of_pruned_weights(method: Any) -> None:
    model, driver = converted(method)
    optimizer, seen = sgd(model), []

    def look(optimizer: Any, *_: Any) -> None:
        for name, mask in masks(driver).items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert not gradient[~mask].any()
            seen.append(bool((~mask).any()))

    optimizer.register_step_pre_hook(look)
    for _ in range(20):
        step(model, optimizer, driver)
    assert any(seen)


@methods
def test_a_resumed_training_is_the_same_bit_for_bit(method: Any) -> None:
    model, driver = converted(method)
    optimizer = sgd(model)
    for number in range(30):
        if number == 14:  # the next step moves, and its gradients are let through
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict()), file)
        step(model, optimizer, driver)
    other, its_driver = converted(method)
    its_optimizer = sgd(other)
    file.seek(0)
    weights, state = torch.load(file)
    other.load_state_dict(weights)
    its_optimizer.load_state_dict(state)
    assert its_driver.steps == 14
    for _ in range(16):
        step(other, its_optimizer, its_driver)
    mine, its = model.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


@methods
def test_the_sparsifiers_own_state_round_trips(method: Any) -> None:
    model, driver = converted(method)
    optimizer = sgd(model)
    for _ in range(9):
        step(model, optimizer, driver)
    other, its_driver = converted(method)
    other.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "st3fx_" not in k}, strict=False
    )
    its_driver.load_state_dict(driver.state_dict())
    assert its_driver.steps == 9
    assert its_driver.scheduled == driver.scheduled
    for name, mask in masks(driver).items():
        assert torch.equal(masks(its_driver)[name], mask)


@growing
def test_gradients_of_all_batches_grow(method: Any) -> None:
    """Two halves of a batch, accumulated, move the masks as the whole does."""
    results = []
    for halves in (False, True):
        model, driver = converted(method)
        driver.attach(optimizer := sgd(model))
        for _ in range(4):
            if halves:
                for part in (slice(0, 4), slice(4, 8)):
                    (nn.functional.cross_entropy(model(X[part]), Y[part]) / 2).backward()
            else:
                backward(model)
            optimizer.step()
            optimizer.zero_grad()
        results.append(masks(driver))
    same = [(results[1][name] == mask).double().mean().item() for name, mask in results[0].items()]
    assert min(same) > 0.99  # sums in another order


def test_a_closure_is_run_before_its_gradients_are_taken() -> None:
    model, driver = converted(RigL(0.8, interval=1))
    driver.attach(optimizer := sgd(model))
    before = masks(driver)

    def closure() -> float:
        optimizer.zero_grad()
        return backward(model)

    optimizer.step(closure)
    changed = sum(int((mask ^ before[name]).sum()) for name, mask in masks(driver).items())
    assert changed > 50
    assert optimizer.state[model.get_parameter("2.weight")]["momentum_buffer"].any()


class Plain:
    """An optimizer that is none of torch's."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def step(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.data -= 0.05 * parameter.grad


def test_another_optimizer_needs_step_before_zero_grad() -> None:
    model, driver = converted(RigL(0.8, interval=1))
    backward(model)
    Plain(model).step()
    before = masks(driver)
    driver.step()
    assert any(not torch.equal(before[name], mask) for name, mask in masks(driver).items())
    model.zero_grad()
    backward(model)
    Plain(model).step()
    model.zero_grad()
    with pytest.raises(StateError, match=r"rigl moves its masks after step 2 .* before zero_grad"):
        driver.step()


def test_gradients_that_are_no_numbers_grow_nothing() -> None:
    model, driver = converted(RigL(0.8, interval=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = masks(driver)
    backward(model)
    model.get_parameter("2.weight").grad[0, 0, 0, 0] = float("inf")  # type: ignore[index]
    optimizer.step()
    with torch.no_grad():
        model.get_parameter("2.weight").nan_to_num_(0.0)
    with pytest.warns(OptimizerWarning, match="gradients are not finite at step 1"):
        driver.step()
    assert all(torch.equal(before[name], mask) for name, mask in masks(driver).items())


def test_of_two_optimizers_the_last_counts() -> None:
    for last in (False, True):
        model, driver = converted(RigL(0.8, interval=1))
        weight = model.get_parameter("2.weight")
        others = [p for p in model.parameters() if p is not weight]
        pair = [torch.optim.SGD(others, 0.05), torch.optim.SGD([weight], 0.05)]
        driver.attach(pair[last])
        before = masks(driver)["2.weight"]
        backward(model)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for optimizer in pair:
                optimizer.step()
        texts = [str(warning.message) for warning in said]
        assert any(t.startswith("2.weight: no gradient at step 1") for t in texts) is not last
        assert torch.equal(before, masks(driver)["2.weight"]) is not last


def test_weights_that_are_no_numbers_are_named() -> None:
    for method in (RigL(0.8, interval=1), ACDC(0.8, begin=0.0)):
        model, driver = converted(method)
        backward(model)
        with torch.no_grad():
            model.get_parameter("2.weight").fill_(float("nan"))
        with pytest.raises(StateError, match=r"(?i)nan.* in 2\.weight: the training has diverged"):
            driver.step()


@methods
def test_copies_have_the_masks_of_the_training(method: Any) -> None:
    model, driver = converted(method)
    optimizer, average = sgd(model), copy.deepcopy(model)
    for _ in range(STEPS):
        step(model, optimizer, driver)
        with torch.no_grad():
            for own, other in zip(average.parameters(), model.parameters(), strict=True):
                own.lerp_(other, 0.5)
    folded = st3fx.fold(average.eval())
    for name, mask in masks(driver).items():
        assert not folded.get_parameter(name)[~mask].any()


@methods
def test_a_sparsity_by_hand_holds_and_is_given_back(method: Any) -> None:
    model, driver = converted(method)
    optimizer, numel = sgd(model), driver.plan.numel
    driver.set_sparsity(0.0)
    assert driver.sparsity == 0
    driver.set_sparsity(0.6)
    held = masks(driver)
    for _ in range(4):
        step(model, optimizer, driver)
    assert all(torch.equal(held[name], mask) for name, mask in masks(driver).items())
    assert abs(driver.sparsity - 0.6) * numel <= 1
    driver.set_sparsity(None)
    for _ in range(8):
        step(model, optimizer, driver)
    assert abs(driver.sparsity - (driver.scheduled or 0.0)) * numel <= 1


@methods
def test_frozen_masks_stay(method: Any) -> None:
    model, driver = converted(method)
    optimizer = sgd(model)
    for _ in range(6):
        step(model, optimizer, driver)
    driver.freeze()
    kept = masks(driver)
    for _ in range(12):
        step(model, optimizer, driver)
    assert all(torch.equal(kept[name], mask) for name, mask in masks(driver).items())


@pytest.mark.parametrize("granularity", [Block(4), Channels()], ids=["blocks", "channels"])
@pytest.mark.parametrize("make", [RigL, GraNet, ACDC])
def test_groups_move_as_a_whole(make: Any, granularity: Any) -> None:
    own = {} if make is ACDC else {"interval": 3}
    model, driver = converted(make(0.6, granularity=granularity, **own))
    optimizer = sgd(model)
    for _ in range(STEPS):
        step(model, optimizer, driver)
    largest = max(granularity.largest(site) for site in driver.plan.sites)
    assert abs(driver.sparsity - 0.6) * driver.plan.numel <= largest
    mask = masks(driver)["2.weight"]
    parts = mask.split(4, dim=1) if granularity == Block(4) else [mask.flatten(1)]
    assert all(torch.equal(part.any(1), part.all(1)) for part in parts)


def test_counts_of_groups_of_different_sizes_do_not_drift() -> None:
    """Rows of 3, 288 and 10 inputs in blocks of 4: each move may miss a count by less than one."""
    torch.manual_seed(1)
    odd = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 10), nn.Tanh(), nn.Linear(10, 7)
    )
    method = RigL(0.6, interval=1, granularity=Block(4))
    model, driver = st3fx.convert(odd, X, method, total_steps=80, verify=False)
    optimizer = sgd(model)
    wanted = method.counts(driver.plan.sites, 0.6)
    for _ in range(60):
        step(model, optimizer, driver)
        kept = [whole - gone for gone, whole in driver.pruned().values()]
        assert all(0 <= count - own < 4 for count, own in zip(wanted, kept, strict=True)), kept


@methods
def test_a_share_of_multiplications(method: Any) -> None:
    method = type(method)(
        0.9, budget="macs", **({} if isinstance(method, ACDC) else {"interval": 3})
    )
    model, driver = converted(method)
    optimizer = sgd(model)
    for _ in range(STEPS):
        step(model, optimizer, driver)
    costs = {site.name: site.cost for site in driver.plan.sites}
    gone = sum(costs[name] * count for name, (count, _) in driver.pruned().items())
    whole = sum(costs[name] * count for name, (_, count) in driver.pruned().items())
    assert abs(gone - 0.9 * whole) <= max(costs.values())


def test_the_first_masks_are_the_seeds() -> None:
    found = [masks(converted(RigL(0.9, seed=seed))[1])["2.weight"] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# --- schedules


def test_rigl_moves_every_interval_before_its_end() -> None:
    method = RigL(0.9)
    moves = [step for step in range(4001) if method.moves_at(step, 4000)]
    assert moves == list(range(100, 3000, 100))
    short = [step for step in range(401) if method.moves_at(step, 400)]
    assert short == list(range(30, 300, 30))


def test_granets_sparsity_is_that_of_its_last_move() -> None:
    method, total = GraNet(0.9, schedule=st3fx.CubicSchedule(0.1, 0.6)), 4000
    moves = [step for step in range(total + 1) if method.moves_at(step, total)]
    assert moves == list(range(400, 2401, 100))
    for now in (400, 900, 1350, 2399):
        since = (now // 100 * 100 - 400) / 2000
        expected = 0.9 + (0.5 - 0.9) * (1 - since) ** 3
        assert method.at(now, total) == pytest.approx(expected)
    assert method.at(399, total) == 0.5
    assert method.at(2400, total) == 0.9
    assert not method.grows_at(2400, total)


def test_acdcs_phases_are_those_of_the_paper() -> None:
    """100 epochs of ImageNet: when each phase begins, in epochs."""
    method = ACDC(0.9)
    begins = {
        step: method.is_compressed(step, 100) for step in range(101) if method.moves_at(step, 100)
    }
    compressed = [10, 20, 30, 40, 50, 60, 70, 85]
    assert [step for step, is_compressed in begins.items() if is_compressed] == compressed
    assert [step for step, now in begins.items() if not now] == [15, 25, 35, 45, 55, 65, 75]
    for total in (1, 2, 3, 10, 57):
        assert method.at(total, total) == 0.9


def test_the_target_is_reached_where_no_dense_phase_comes() -> None:
    model, driver = converted(ACDC(0.9), 20)  # sparse after 2, 4, ... 12, 14, and from 17 on
    optimizer, sparse, reached = sgd(model), [], []
    for number in range(1, 21):
        step(model, optimizer, driver)
        sparse += [number] * (driver.scheduled == 0.9)
        reached += [number] * driver.reached
    assert sparse == [2, 4, 6, 8, 10, 12, 14, 17, 18, 19, 20]
    assert reached == [17, 18, 19, 20]


def test_acdc_restarts_momentum_where_it_decompresses() -> None:
    model, driver = converted(ACDC(0.9), 100)
    optimizer = sgd(model)
    weight, bias = model.get_parameter("2.weight"), model.get_parameter("2.bias")
    for _ in range(14):
        step(model, optimizer, driver)
    pruned = ~masks(driver)["2.weight"]
    assert pruned.any()
    assert not weight[pruned].any()
    assert optimizer.state[weight]["momentum_buffer"].any()
    step(model, optimizer, driver)
    assert driver.sparsity == 0
    assert not optimizer.state[weight]["momentum_buffer"].any()
    assert optimizer.state[bias]["momentum_buffer"].any()
    step(model, optimizer, driver)
    assert weight[pruned].any()


# --- errors


def test_random_masks_are_exported_by_name_only(tmp_path: Path) -> None:
    """Of a bundle that is sparse from the conversion on, and was not trained."""
    path = tmp_path / "tiny.st3fx"
    convert = ["convert", "st3fx:resnet20", "--method", "rigl", "--no-verify", "-o", str(path)]
    export = ["export", str(path), "-o", str(tmp_path / "tiny.onnx")]
    assert CliRunner().invoke(main, convert).exit_code == 0
    found = CliRunner().invoke(main, export)
    assert found.exit_code == 2
    assert "is not trained yet, its masks are random: train it" in found.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (RigL, {"interval": 0}, r"RigL\(interval=0\): give optimizer steps"),
        (RigL, {"fraction": 1.5}, r"RigL\(fraction=1.5\): give the share"),
        (RigL, {"seed": -1}, "whole number"),
        (RigL, {"end": 2.0}, "fraction of the training"),
        (RigL, {"distribution": "er"}, "give 'erk' or 'uniform'"),
        (RigL, {"granularity": "nm:2:4"}, "nm:2:4 does not allow: take acdc"),
        (GraNet, {"granularity": "nm:2:4"}, "nm:2:4 does not allow: take acdc"),
        (GraNet, {"initial": 0.95}, "is above the sparsity 0.9: give 0.9 or less"),
        (GraNet, {"schedule": st3fx.CubicSchedule(draw=(0.5, 0.9))}, "no sparsity can be drawn"),
        (ACDC, {"phase": 0.0}, "phase > 0"),
        (ACDC, {"begin": 0.9, "finish": 0.2}, r"begin \+ finish <= 1"),
    ],
)  # fmt: skip
def test_settings_outside_their_range(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        make(**settings)


def test_what_cannot_move_is_refused_at_the_conversion() -> None:
    with pytest.raises(PlanError, match="rigl has steps of its own for its masks"):
        st3fx.convert(net(), X, RigL(0.9), update_every=5)
    sparse = net()
    with torch.no_grad():
        sparse.get_parameter("2.weight")[:8] = 0
    with pytest.raises(PlanError, match=r"are zero, and rigl may bring .*keep_zeros=False"):
        st3fx.convert(sparse, X, RigL(0.9))
    _, driver = st3fx.convert(sparse, X, RigL(0.9), keep_zeros=False)
    assert abs(driver.sparsity - 0.9) * driver.plan.numel <= 1
    computed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(MethodError, match="is computed before it multiplies"):
        st3fx.convert(computed, torch.randn(2, 8), GraNet(0.9))
