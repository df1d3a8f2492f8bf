"""Drawn masks: budgets, exact counts, draws that repeat, copies and files, folds, errors."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import st3fx
from st3fx.errors import MethodError, StateError, TrainError
from st3fx.files.reading import DamageError
from st3fx.inspection.converted import effective
from st3fx.plan.sites import Layout, Site
from st3fx.sparsity.drawing import decided, is_drawn, logistic_noise, with_draw
from st3fx.sparsity.projection import project
from st3fx.sparsity.ties import level, untied
from st3fx.training.optim import make_optimizer, require_fit, set_learning_rate
from st3fx.training.sensitivity import own_threshold
from tests.nets import Net, image
from tests.training.runs import Recorder, settings

STEPS = 12
RAMP = st3fx.CubicSchedule(0.0, 0.5)


def converted(verify: bool = False, **values: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    own: dict[str, Any] = {"sparsity": 0.8, "schedule": RAMP} | values
    method = st3fx.ProbMask(**own)
    return st3fx.convert(Net(), image(), method, total_steps=STEPS, verify=verify)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 0.02)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: st3fx.Sparsifier, steps: int
) -> None:
    for _ in range(steps):
        model.train()
        torch.manual_seed(sparsifier.steps)  # dropout
        optimizer.zero_grad()
        (model(image()) - 0.3).square().mean().backward()
        optimizer.step()
        sparsifier.step()


def trained(steps: int = STEPS, **values: Any) -> tuple[Any, st3fx.Sparsifier, Any]:
    model, sparsifier = converted(**values)
    optimizer = optimizer_of(model)
    train(model, optimizer, sparsifier, steps)
    return model, sparsifier, optimizer


def probabilities(model: nn.Module) -> dict[str, Tensor]:
    """By site; a tied one once."""
    return {
        name.replace("st3fx_weight_probability", "weight"): value
        for name, value in model.named_parameters()
        if name.endswith("_probability")
    }


def zeros(sparsifier: st3fx.Sparsifier) -> int:
    return sum(int((own == 0).sum()) for own in sparsifier.effective_weights().values())


def is_frozen(sparsifier: st3fx.Sparsifier) -> bool:
    return sparsifier.frozen  # mypy takes a property for a constant


def evaluated(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(image())
    return output


def test_the_budget_holds_and_the_mask_is_exact_after_every_step() -> None:
    model, sparsifier = converted()
    optimizer, numel = optimizer_of(model), sparsifier.plan.numel
    assert sparsifier.sparsity == 0.0
    for number in range(1, STEPS + 1):
        train(model, optimizer, sparsifier, 1)
        wanted = RAMP.sparsity(number, STEPS, 0.8)
        own = torch.cat([p.detach().flatten() for p in probabilities(model).values()])
        assert own.numel() == numel
        assert own.min() >= 0
        assert own.max() <= 1
        assert (1 - wanted) * numel * 0.99 <= own.double().sum() <= (1 - wanted) * numel + 1e-6
        assert abs(zeros(sparsifier) - wanted * numel) <= 1
        assert sparsifier.sparsity == zeros(sparsifier) / numel


def test_the_most_probable_are_left() -> None:
    model, sparsifier, _ = trained()
    own, weights = probabilities(model), sparsifier.effective_weights()
    kept = torch.cat([own[name][weight != 0] for name, weight in weights.items()])
    gone = torch.cat([own[name][weight == 0] for name, weight in weights.items()])
    assert kept.min() >= gone.max()
    for name, weight in weights.items():
        latent = model.get_parameter(name)
        assert torch.equal(weight[weight != 0], latent[weight != 0])


def test_training_draws_and_evaluation_does_not() -> None:
    model, sparsifier, optimizer = trained(6)
    name = sparsifier.plan.sites[0].name
    module = model.get_submodule(name.rpartition(".")[0])
    first = module.weight.detach().clone()
    assert torch.equal(first, module.weight)  # one mask until the next step
    ratio = first / model.get_parameter(name)
    assert ((ratio > 0.001) & (ratio < 0.999)).any()  # relaxed
    evaluation = [evaluated(model) for _ in range(2)]
    assert torch.equal(*evaluation)
    assert torch.equal(module.weight, sparsifier.effective_weights()[name])
    model.train()
    assert torch.equal(first, module.weight)
    train(model, optimizer, sparsifier, 1)
    assert not torch.equal(first, module.weight)


def test_hard_masks_are_zeros_and_ones() -> None:
    model, sparsifier, _ = trained(7, hard=True)
    for site in sparsifier.plan.sites:
        path, _, parameter = site.name.rpartition(".")
        own = getattr(model.get_submodule(path), parameter).detach()
        latent = model.get_parameter(site.name).detach()
        assert ((own == 0) | (own == latent)).all()
    assert any((p.grad != 0).any() for p in probabilities(model).values() if p.grad is not None)


@pytest.mark.parametrize("at", [0, 1, 5, 6, 11])
@pytest.mark.parametrize("evaluating", [False, True])
def test_goes_on_bit_for_bit_from_any_step(at: int, evaluating: bool) -> None:
    model, sparsifier, optimizer = trained(at)
    if evaluating:
        evaluated(model)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, driver = converted()
    other.load_state_dict(saved[0])
    second = optimizer_of(other)
    second.load_state_dict(saved[1])
    train(model, optimizer, sparsifier, STEPS - at)
    train(other, second, driver, STEPS - at)
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    assert torch.equal(evaluated(model), evaluated(other))


def test_an_evaluation_changes_no_training() -> None:
    model, sparsifier, optimizer = trained(5)
    other, driver, second = trained(5)
    for _ in range(4):
        evaluated(other)
        train(model, optimizer, sparsifier, 1)
        train(other, second, driver, 1)
    a, b = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_the_seed_is_another_training() -> None:
    a, b = (trained(4, seed=seed)[0].state_dict() for seed in (0, 1))
    assert not torch.equal(a["stem.weight"], b["stem.weight"])


def test_copies_pickles_and_folds_compute_the_same() -> None:
    model, sparsifier, _ = trained()
    expected = evaluated(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(evaluated(other), expected)
    model.train()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(evaluated(other), expected)
    for mode in (True, False):
        folded = st3fx.fold(model.train(mode))
        assert type(folded) is Net
        assert not any("st3fx" in name for name in folded.state_dict())
        assert torch.equal(evaluated(folded), expected)
        count = sum(int((folded.get_parameter(s.name) == 0).sum()) for s in sparsifier.plan.sites)
        assert abs(count - 0.8 * sparsifier.plan.numel) <= 1


def test_a_copy_goes_on_training_as_the_original() -> None:
    model, sparsifier, optimizer = trained(5)
    other, second, driver = copy.deepcopy((model, optimizer, sparsifier))
    train(model, optimizer, sparsifier, 4)
    train(other, second, driver, 4)
    a, b = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, b[key]) for key, value in a.items())


def test_averages_are_exact_too() -> None:
    model, sparsifier = converted()
    optimizer, average = optimizer_of(model), AveragedModel(model)
    for _ in range(STEPS):
        train(model, optimizer, sparsifier, 1)
        average.update_parameters(model)
    evaluated(average)
    own = st3fx.Sparsifier(average.module)
    assert abs(zeros(own) - 0.8 * own.plan.numel) <= 1


def test_frozen_masks_stay_though_probabilities_move() -> None:
    model, sparsifier, optimizer = trained()
    before = {name: own == 0 for name, own in sparsifier.effective_weights().items()}
    sparsifier.freeze()
    frozen = evaluated(model)
    assert torch.equal(evaluated(st3fx.fold(model)), frozen)
    train(model, optimizer, sparsifier, 3)
    with torch.no_grad():
        for own in probabilities(model).values():
            own.zero_()
    assert all(torch.equal(w == 0, before[n]) for n, w in sparsifier.effective_weights().items())
    assert not torch.equal(evaluated(model), frozen)  # weights are trained
    other, _ = converted()
    other.load_state_dict(model.state_dict())
    assert torch.equal(evaluated(other), evaluated(model))


def test_a_file_is_counted_as_it_would_be_folded() -> None:
    model, sparsifier, _ = trained(5)
    state, weights = model.state_dict(), sparsifier.effective_weights()
    for site in sparsifier.plan.sites:
        layer = effective(site, sparsifier.method, state.get)
        assert layer.zeros == int((weights[site.name] == 0).sum())
    del state["stem.st3fx_weight_probability"]
    with pytest.raises(DamageError, match=r"stem\.weight has no probability"):
        effective(sparsifier.plan.sites[0], sparsifier.method, state.get)


def test_one_layer_alone_is_pruned_by_probability() -> None:
    model, sparsifier, _ = trained(9)
    method, site = sparsifier.method, sparsifier.plan.sites[1]
    assert isinstance(method, st3fx.ProbMask)
    own = probabilities(model)[site.name].detach()
    found = own_threshold(site, own, 0.25, method)
    gone = untied(own, found)[0] <= level(found)
    assert abs(int(gone.sum()) - 0.25 * own.numel()) <= 1


def test_set_sparsity_prunes_by_probability_and_holds() -> None:
    model, sparsifier, optimizer = trained(4)
    for sparsity in (0.5, 0.9):
        sparsifier.set_sparsity(sparsity)
        assert abs(zeros(sparsifier) - sparsity * sparsifier.plan.numel) <= 1
        train(model, optimizer, sparsifier, 1)
        assert abs(zeros(sparsifier) - sparsity * sparsifier.plan.numel) <= 1


def test_equal_probabilities_are_split_by_place() -> None:
    model, sparsifier = converted()
    sparsifier.set_sparsity(0.3)
    assert abs(zeros(sparsifier) - 0.3 * sparsifier.plan.numel) <= 1
    assert 0 < sparsifier.sparsity < 1
    assert torch.equal(evaluated(st3fx.fold(model)), evaluated(model))


@pytest.mark.parametrize("granularity", ["block:4", "channels"])
def test_groups(granularity: str) -> None:
    model, sparsifier, _ = trained(granularity=granularity, sparsity=0.6)
    method, sites = sparsifier.method, sparsifier.plan.sites
    largest = max(method.granularity.largest(site) for site in sites)
    assert abs(zeros(sparsifier) - 0.6 * sparsifier.plan.numel) <= largest
    assert torch.equal(evaluated(st3fx.fold(model)), evaluated(model))


def test_multiplications_as_the_budget() -> None:
    _, sparsifier, _ = trained(budget="macs")
    sites, weights = sparsifier.plan.sites, sparsifier.effective_weights()
    gone = sum(site.cost * int((weights[site.name] == 0).sum()) for site in sites)
    whole = sum(site.cost * site.numel for site in sites)
    assert abs(gone - 0.8 * whole) <= max(site.cost for site in sites)


def test_masks_are_drawn_at_each_step_whatever_update_every_is() -> None:
    torch.manual_seed(0)
    model, sparsifier = st3fx.convert(
        Net(), image(), st3fx.ProbMask(0.8, schedule=RAMP), total_steps=STEPS, verify=False,
        update_every=5,
    )  # fmt: skip
    optimizer = optimizer_of(model)
    train(model, optimizer, sparsifier, 3)
    assert abs(zeros(sparsifier) - RAMP.sparsity(3, STEPS, 0.8) * sparsifier.plan.numel) <= 1


def test_it_is_verified() -> None:
    _, sparsifier = converted(verify=True)
    assert sparsifier.plan.verified
    assert sparsifier.plan.total_parameters == sum(p.numel() for p in Net().parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"granularity": "nm:2:4"}, "probmask draws each group by itself"),
        ({"coldest": 0.0}, r"ProbMask\(coldest=0.0\): give a temperature above 0"),
        ({"fixed": 1.0}, r"ProbMask\(fixed=1.0\): give a share of the run"),
        ({"sparsity": 1.0}, "outside"),
        ({"schedule": st3fx.CubicSchedule(draw=(0.5, 0.9))}, "draws masks within one budget"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        st3fx.ProbMask(**values)


def test_beside_sgd_the_driver_gives_probabilities_an_adam_of_their_own(tmp_path: Path) -> None:
    model, sparsifier = converted()
    own = settings(tmp_path, method="probmask", lr=0.1, probability_lr=0.02, weight_decay=0.0)
    optimizer = make_optimizer(model, own)
    before = {name: value.detach().clone() for name, value in probabilities(model).items()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, sparsifier, 1)  # dense: s has no gradient where it is 1
    train(model, optimizer, sparsifier, 1)
    set_learning_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05, 0.05, 0.01]
    learned = {id(p) for p in sparsifier.threshold_parameters()}
    for group in optimizer.param_groups:
        kinds = {"exp_avg" in optimizer.state[p] for p in group["params"]}
        assert kinds == {{id(p) for p in group["params"]} <= learned}
    assert all((p - before[name]).abs().max() > 0.01 for name, p in probabilities(model).items())
    assert any(not torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_the_driver_refuses_a_rate_of_probabilities_where_there_are_none(tmp_path: Path) -> None:
    own = settings(tmp_path, method="gmp", probability_lr=0.02)
    said = (
        r"probability_lr = 0\.02 is for methods that draw masks \(probmask\), and the method is gmp"
    )
    with pytest.raises(TrainError, match=said):
        require_fit(own, st3fx.GMP(0.8), 10)
    require_fit(own, st3fx.ProbMask(0.8), 10)
    require_fit(settings(tmp_path, method="gmp"), st3fx.GMP(0.8), 10)


def test_the_mask_is_fixed_at_the_end_and_weights_are_trained_on() -> None:
    model, sparsifier, optimizer = trained(8, fixed=0.25)
    assert not is_frozen(sparsifier)
    train(model, optimizer, sparsifier, 1)
    assert is_frozen(sparsifier)
    assert abs(zeros(sparsifier) - 0.8 * sparsifier.plan.numel) <= 1
    fixed = {name: own == 0 for name, own in sparsifier.effective_weights().items()}
    weights = {name: own.clone() for name, own in sparsifier.effective_weights().items()}
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, driver = converted(fixed=0.25)
    other.load_state_dict(saved[0])
    second = optimizer_of(other)
    second.load_state_dict(saved[1])
    assert driver.frozen
    train(model, optimizer, sparsifier, 3)
    train(other, second, driver, 3)
    for name, own in sparsifier.effective_weights().items():
        assert torch.equal(own == 0, fixed[name])
        assert not torch.equal(own, weights[name])
    assert torch.equal(evaluated(model), evaluated(other))


def test_no_mask_is_fixed_before_the_schedule_ends_or_by_hand_or_at_the_last_step() -> None:
    late = st3fx.CubicSchedule(0.0, 0.9)
    model, sparsifier, optimizer = trained(10, fixed=0.5, schedule=late)
    assert not is_frozen(sparsifier)
    train(model, optimizer, sparsifier, 1)
    assert is_frozen(sparsifier)
    model, sparsifier, optimizer = trained(8, fixed=0.25)
    sparsifier.set_sparsity(0.5)
    train(model, optimizer, sparsifier, 2)
    assert not is_frozen(sparsifier)
    assert not trained(fixed=0.0)[1].frozen


def test_another_methods_model_refuses_drawn_thresholds() -> None:
    model, _, _ = trained(3)
    other, _ = st3fx.convert(Net(), image(), st3fx.GMP(0.8), total_steps=STEPS, verify=False)
    with pytest.raises((RuntimeError, StateError), match=r"a threshold of shape \(5,\)"):
        other.load_state_dict(model.state_dict())


@pytest.mark.slow
def test_the_driver_trains_and_reaches_the_target(tmp_path: Path) -> None:
    from st3fx.commands.train import train_spec

    own = settings(
        tmp_path, method="probmask", sparsity=0.75, ramp=(0.0, 0.5), log_interval=1, epochs=4,
    )  # fmt: skip
    report = Recorder()
    result = train_spec(own, report=report)
    numel = 4 * 25 + 4 * 49 * 10
    assert result.sparsity == pytest.approx(0.75, abs=1 / numel)
    assert all(row.sparsity == pytest.approx(row.wanted, abs=1 / numel) for row in report.rows)
    assert report.rows[-1].loss < report.rows[0].loss
    assert result.scores.top1 > 0.2


@pytest.mark.slow
def test_compiled_in_one_graph_it_trains_the_same() -> None:
    torch._dynamo.reset()
    model, sparsifier = converted()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = optimizer_of(model)
    for mode in (True, True, False):
        train(model, optimizer, sparsifier, 1)
        model.train(mode)
        results = []
        for call in (model, compiled):
            model.zero_grad(set_to_none=True)
            torch.manual_seed(0)
            output = call(image())
            output.square().sum().backward()
            results.append([output.detach(), *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("drawing", [False, True])
def test_opcheck(drawing: bool) -> None:
    method = st3fx.ProbMask()
    place = Site("w", ("w",), (6, 4, 2), "any", Layout((0, 2), 3), ("",), groups=3)
    weight = torch.randn(6, 4, 2, requires_grad=True)
    probability = torch.rand(6, 4, 2, requires_grad=True)
    threshold = torch.tensor(0.5)
    if drawing:
        threshold = with_draw(threshold, 3, 0.5)
    mask = torch.rand(6, 4, 2) > 0.5
    operator: Any = method.op
    arguments = (weight, threshold, mask, probability, *method.constants(place))
    torch.library.opcheck(operator, arguments)


def test_projection_is_the_nearest_point_within_the_budget() -> None:
    """Against bisection in double precision."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        costs = [1.0, 1.0, 1.0] if trial % 2 else [0.5, 1.0, 3.0]
        tensors = [torch.rand(n, generator=generator) ** (1 + trial % 5) * 1.3 - 0.1
                   for n in (1, 700, 3000)]  # fmt: skip
        before = [tensor.double() for tensor in tensors]
        pairs = [*zip(costs, before, strict=True)]
        whole = sum(c * float(z.clamp(0, 1).sum()) for c, z in pairs)
        budget = whole * (trial + 1) / 36
        low, high = 0.0, 10.0
        for _ in range(80):
            middle = (low + high) / 2
            cost = sum(c * float((z - middle * c).clamp(0, 1).sum()) for c, z in pairs)
            low, high = (middle, high) if cost > budget else (low, middle)
        shift = 0.0 if whole <= budget else high
        project(tensors, budget, costs)
        spent = sum(c * float(p.double().sum()) for c, p in zip(costs, tensors, strict=True))
        assert spent <= budget * (1 + 1e-12)
        for (cost, z), found in zip(pairs, tensors, strict=True):
            expected = (z - shift * cost).clamp(0, 1)
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_nothing_is_left_of_no_budget() -> None:
    tensors = [torch.rand(30), torch.ones(5)]
    project(tensors, 0.0)
    assert all(not tensor.any() for tensor in tensors)


def test_thresholds_say_whether_masks_are_drawn() -> None:
    for own in (torch.tensor(0.25), torch.tensor([0.2, 0.3, 7.0], dtype=torch.float64)):
        assert not is_drawn(own)
        spec = with_draw(own, 2**40, 0.5)
        assert is_drawn(spec)
        assert spec[3] == 2**40
        assert torch.equal(decided(spec), own)
        assert decided(own) is own


def test_noise_is_logistic_and_depends_on_place_draw_and_salt() -> None:
    device = torch.device("cpu")
    noise = logistic_noise((300, 300), 4, 5, device)
    assert torch.equal(noise, logistic_noise((300, 300), 4, 5, device))
    share = noise.flatten().sigmoid().sort().values
    steps = torch.linspace(0, 1, share.numel())
    torch.testing.assert_close(share, steps, rtol=0, atol=0.01)  # u is uniform
    for other in (
        logistic_noise((300, 300), 5, 5, device),
        logistic_noise((300, 300), 4, 6, device),
        noise.roll(1, 0),
        noise.roll(1, 1),
    ):
        together = torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1]
        assert abs(together) < 0.02
