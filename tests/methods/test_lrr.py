"""Pruning in cycles with the learning rate rewound: levels, masks that stay, the driver's rates."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import st3fx
from st3fx.errors import MethodError, StateError, TrainError
from st3fx.sparsifier.thresholds import Thresholds
from st3fx.sparsity.threshold.search import GlobalThreshold
from st3fx.training.optim import learning_rate
from st3fx.training.recipes import resolve
from tests.nets import Net, image
from tests.training.runs import Recorder, settings

STEPS = 12


def converted(steps: int = STEPS, **values: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    method = st3fx.LRR(**({"sparsity": 0.875, "cycles": 4} | values))
    return st3fx.convert(Net(), image(), method, total_steps=steps, verify=False)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-2)


def batch(number: int) -> Tensor:
    torch.manual_seed(number)
    return image()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: st3fx.Sparsifier) -> None:
    model.train()
    optimizer.zero_grad()
    model(batch(sparsifier.steps)).square().mean().backward()
    optimizer.step()
    sparsifier.step()


def pruned(sparsifier: st3fx.Sparsifier) -> dict[str, Tensor]:
    return {name: weight == 0 for name, weight in sparsifier.effective_weights().items()}


def zeros(sparsifier: st3fx.Sparsifier) -> int:
    return sum(int(own.sum()) for own in pruned(sparsifier).values())


@pytest.mark.parametrize(
    ("sparsity", "cycles"), [(0.9, 12), (0.95, 15), (0.98, 19), (0.2, 2), (0.36, 3), (0.0, 2)]
)
def test_by_default_a_cycle_prunes_a_fifth_of_what_is_left_or_less(
    sparsity: float, cycles: int
) -> None:
    method = st3fx.LRR(sparsity)
    assert method.count == cycles
    assert 0.8 ** (cycles - 1) <= 1 - sparsity + 1e-12
    assert cycles == 2 or 0.8 ** (cycles - 2) > 1 - sparsity


def test_the_levels_are_powers_of_one_share() -> None:
    method = st3fx.LRR(1 - 0.8**3, cycles=4)
    found = [method.at(step, 12) for step in range(13)]
    expected = [1 - 0.8 ** max(0, math.ceil(step / 3) - 1) for step in range(13)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[0] == 0.0
    assert found[12] == method.sparsity
    # From zeros that the model came with, by one share too.
    assert method.at(4, 12, 0.1) == pytest.approx(1 - 0.9 * (0.8**3 / 0.9) ** (1 / 3))
    assert method.at(12, 12, 0.1) == method.sparsity
    assert [method.at(step, 12, 0.7) for step in (1, 6, 12)] == pytest.approx([0.7] * 3)


@pytest.mark.parametrize("total", [12, 13, 40, 3])
def test_periods_part_the_run_and_begin_where_the_level_rises(total: int) -> None:
    method = st3fx.LRR(0.875, cycles=4)
    seen: list[int] = []
    for number in range(total):
        period = method.period(number, total)
        assert number in period
        seen.append(period.start)
        if number:
            rises = method.at(number + 1, total) > method.at(number, total)
            assert rises == (seen[-1] != seen[-2])
        expected = (number - period.start) / len(period)
        assert method.progress(number, total) == expected < 1
    assert len(set(seen)) == min(4, total)
    assert method.progress(total, total) == 1.0
    lengths = {len(method.period(number, total)) for number in range(total)}
    assert max(lengths) - min(lengths) <= 1


def test_each_cycle_prunes_exactly_and_what_is_pruned_stays() -> None:
    model, sparsifier = converted()
    optimizer, numel = optimizer_of(model), sparsifier.plan.numel
    before: dict[str, Tensor] = pruned(sparsifier)
    for number in range(1, STEPS + 1):
        step(model, optimizer, sparsifier)
        assert abs(zeros(sparsifier) - numel * sparsifier.method.at(number, STEPS)) <= 1  # type: ignore[attr-defined]
        now = pruned(sparsifier)
        assert all(bool((now[name] | ~own).all()) for name, own in before.items())
        if (number - 1) % 3:  # within a cycle nothing else goes
            assert all(torch.equal(now[name], own) for name, own in before.items())
        before = now
    assert sparsifier.reached


@pytest.mark.parametrize("sparsity", [0.875, 0.0])
def test_the_target_is_reached_in_the_last_cycle(sparsity: float) -> None:
    model, sparsifier = converted(sparsity=sparsity)
    optimizer, reached = optimizer_of(model), []
    for number in range(1, STEPS + 1):
        step(model, optimizer, sparsifier)
        reached += [number] * sparsifier.reached
    assert reached == [10, 11, 12]


def test_the_smallest_of_what_is_left_go() -> None:
    """Against a plain reference: all magnitudes sorted, pruned ones first."""
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    gone: dict[str, Tensor] = {name: own & False for name, own in pruned(sparsifier).items()}
    for number in range(1, STEPS + 1):
        step(model, optimizer, sparsifier)
        if (number - 1) % 3:
            continue
        latent = {name: model.get_parameter(name).detach().abs() for name in gone}
        left = torch.cat([latent[name][~own] for name, own in gone.items()]).sort().values
        count = round(sparsifier.plan.numel * sparsifier.method.at(number, STEPS))  # type: ignore[attr-defined]
        already = sum(int(own.sum()) for own in gone.values())
        if count > already:
            bound = left[count - already - 1]
            gone = {name: own | (latent[name] <= bound) for name, own in gone.items()}
        differ = sum(int((own != gone[name]).sum()) for name, own in pruned(sparsifier).items())
        assert differ <= 1  # an order statistic of a quantile between two
        gone = pruned(sparsifier)


def test_pruned_weights_do_not_come_back_by_growing() -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    for _ in range(4):
        step(model, optimizer, sparsifier)
    before = pruned(sparsifier)
    with torch.no_grad():
        for name, own in before.items():
            model.get_parameter(name)[own] = 5.0
    step(model, optimizer, sparsifier)
    assert all(torch.equal(own, before[name]) for name, own in pruned(sparsifier).items())
    folded = st3fx.fold(model)
    assert all(torch.equal(folded.get_parameter(name) == 0, own) for name, own in before.items())


@pytest.mark.parametrize("at", [0, 3, 4, 8, 11])
def test_goes_on_bit_for_bit_from_any_step(at: int) -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    for _ in range(at):
        step(model, optimizer, sparsifier)
    other, driver = converted()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other.load_state_dict(saved[0])
    second = optimizer_of(other)
    second.load_state_dict(saved[1])
    for _ in range(at, STEPS):
        step(model, optimizer, sparsifier)
        step(other, second, driver)
    a, b = model.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[key]) for key, value in a.items())
    x = image()
    assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    "values",
    [{}, {"granularity": "block:4"}, {"granularity": "nm:2:4", "sparsity": 0.5}, {"budget": "macs"},
     {"sparsity_of": {"stem.weight": 0.5}}],
    ids=str,
)  # fmt: skip
def test_within_a_cycle_nothing_is_searched_and_the_training_is_that_of_a_search(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    states, searches = [], []
    find = GlobalThreshold.find

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        searches.append(1)
        return find(self, *arguments, **options)

    monkeypatch.setattr(GlobalThreshold, "find", counted)
    for rests in (True, False):
        if not rests:
            monkeypatch.setattr(Thresholds, "_rests", lambda *_: False)
        model, sparsifier = converted(**values)
        optimizer, outputs, before = optimizer_of(model), [], len(searches)
        for _ in range(STEPS):
            step(model, optimizer, sparsifier)
            weights = sparsifier.effective_weights()
            outputs += [own.clone() for own in weights.values()]
        states.append((outputs, len(searches) - before))
    (ours, few), (theirs, many) = states
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    groups = 2 if "sparsity_of" in values else 1
    assert few == 3 * groups
    assert many == 9 * groups


def test_the_sparsifiers_own_state_brings_the_masks_back() -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    for _ in range(7):
        step(model, optimizer, sparsifier)
    other, driver = converted()
    with torch.no_grad():
        for name, value in model.named_parameters():
            other.get_parameter(name).copy_(value)
    driver.load_state_dict(sparsifier.state_dict())
    before = pruned(sparsifier)
    with torch.no_grad():
        for name, own in before.items():
            other.get_parameter(name)[own] = 5.0
    assert all(torch.equal(own, before[name]) for name, own in pruned(driver).items())
    assert not driver.frozen


def test_averages_have_the_models_masks() -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    average = AveragedModel(model)
    for _ in range(STEPS):
        step(model, optimizer, sparsifier)
        average.update_parameters(model)
    average.eval()
    average(image())
    own = st3fx.Sparsifier(average.module)
    assert all(torch.equal(mask, pruned(own)[name]) for name, mask in pruned(sparsifier).items())


def test_set_sparsity_brings_nothing_back() -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    for _ in range(8):
        step(model, optimizer, sparsifier)
    with pytest.raises(StateError, match=r"lrr keeps what it has pruned, 0\.75.* by now: give"):
        sparsifier.set_sparsity(0.5)
    sparsifier.set_sparsity(0.8)
    assert abs(zeros(sparsifier) - 0.8 * sparsifier.plan.numel) <= 1


def test_layers_have_targets_of_their_own() -> None:
    model, sparsifier = converted(sparsity_of={"head.*": 0.5})
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        step(model, optimizer, sparsifier)
    weights = sparsifier.effective_weights()
    head = weights["head.weight"]
    assert abs(int((head == 0).sum()) - 0.5 * head.numel()) <= 1
    assert abs(zeros(sparsifier) - 0.875 * sparsifier.plan.numel) <= 2


def test_folded_it_computes_the_same() -> None:
    model, sparsifier = converted()
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        step(model, optimizer, sparsifier)
    x = image()
    expected = model.eval()(x)
    folded = st3fx.fold(model)
    assert type(folded) is Net
    assert torch.equal(folded.eval()(x), expected)
    count = sum(int((folded.get_parameter(s.name) == 0).sum()) for s in sparsifier.plan.sites)
    assert abs(count - 0.875 * sparsifier.plan.numel) <= 1


@pytest.mark.parametrize("granularity", ["block:4", "nm:2:4", "channels"])
def test_groups(granularity: str) -> None:
    nm = granularity.startswith("nm")
    model, sparsifier = converted(sparsity=0.5, granularity=granularity)
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        step(model, optimizer, sparsifier)
    method, sites = sparsifier.method, sparsifier.plan.sites
    assert isinstance(method, st3fx.LRR)
    largest = max(method.granularity.largest(site) for site in sites)
    wanted = method.reached(sites, 0.5) * sparsifier.plan.numel
    assert abs(zeros(sparsifier) - wanted) <= (1 if nm else largest)


def test_equal_magnitudes_are_split_and_stay_so() -> None:
    model, sparsifier = converted()
    with torch.no_grad():
        for site in sparsifier.plan.sites:
            model.get_parameter(site.name).fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    for number in range(1, STEPS + 1):
        step(model, optimizer, sparsifier)
        wanted = sparsifier.plan.numel * sparsifier.method.at(number, STEPS)  # type: ignore[attr-defined]
        assert abs(zeros(sparsifier) - wanted) <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cycles": 1}, r"LRR\(cycles=1\): give 2 or more"),
        ({"schedule": st3fx.CubicSchedule(0.0, 0.5)}, "has no ramp: leave schedule=, --ramp"),
        ({"sparsity": 1.0}, "outside"),
    ],
)
def test_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        st3fx.LRR(**values)


def test_rates_are_those_of_a_whole_run_of_a_cycles_length() -> None:
    own = resolve({"spec": "x", "epochs": 8, "warmup_epochs": 0.5, "min_lr": 0.01})
    short = resolve({"spec": "x", "epochs": 2, "warmup_epochs": 0.5, "min_lr": 0.01})
    method = st3fx.LRR(cycles=4)
    found = [learning_rate(own, k, 10, method.period(k, 80)) for k in range(80)]
    assert found == [learning_rate(short, k, 10) for k in range(20)] * 4
    plain = st3fx.GMP()
    assert [learning_rate(own, k, 10, plain.period(k, 80)) for k in range(80)] == [
        learning_rate(own, k, 10) for k in range(80)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_epochs": 1.0}, "warmup_epochs = 1 fills a cycle of lrr, which has 1 epochs"),
        ({"sched": "multistep", "milestones": (2.0,)}, "no milestone lies in a cycle of lrr"),
        ({"method_options": ("cycles=40",)}, "15 steps are too few for the cycles of lrr"),
        ({"ramp": (0.0, 0.5)}, "lrr prunes once in each cycle and has no ramp"),
    ],
)
def test_the_driver_refuses_what_does_not_fit(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    from st3fx.commands.train import train_spec

    base = {"method": "lrr", "method_options": ("cycles=3",)}
    with pytest.raises((TrainError, MethodError), match=message):
        train_spec(settings(tmp_path, **(base | values)))


@pytest.mark.slow
def test_the_driver_rewinds_the_rate_and_prunes_in_cycles(tmp_path: Path) -> None:
    from st3fx.commands.train import train_spec

    own = settings(
        tmp_path, method="lrr", method_options=("cycles=3",), sparsity=0.75, log_interval=1
    )
    report = Recorder()
    result = train_spec(own, report=report)
    rates = [row.lr for row in report.rows]
    assert rates[:5] == rates[5:10] == rates[10:]
    assert rates[0] == 0.1 > rates[4] > 0
    levels = [0.0] * 5 + [0.5] * 5 + [0.75] * 5
    numel = sum(4 * 25 for _ in "s") + 4 * 49 * 10
    assert [row.sparsity for row in report.rows] == pytest.approx(levels, abs=1 / numel)
    assert [score.at_target for score in report.scores] == [False, False, True]
    assert result.sparsity == pytest.approx(0.75, abs=1 / numel)
