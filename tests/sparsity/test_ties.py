"""Equal magnitudes that straddle the target are split: exactly, and the same everywhere."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx import methods
from st3fx.errors import StateError
from st3fx.modules.marks import state_name
from st3fx.sparsity import cache, ties
from st3fx.sparsity.granularity import Block, Granularity, Unstructured
from st3fx.sparsity.threshold import search
from st3fx.sparsity.threshold import ties as split_ties

METHODS: dict[str, Any] = {
    "st3": methods.ST3, "gmp": methods.GMP, "feather": methods.Feather,
    "st3-sigma": lambda **settings: methods.ST3(normalize="sigma", **settings),
}  # fmt: skip
FILLS = {
    "one magnitude": lambda p: torch.where(torch.rand_like(p) < 0.5, 1.0, -1.0),
    "three": lambda p: torch.randint(1, 4, p.shape) * 0.125,
    "bfloat16": lambda p: (0.05 * torch.randn_like(p)).bfloat16().float(),
    "one of each layer": lambda p: torch.full_like(p, 1 / len(p)),
    "huge": lambda p: torch.full_like(p, 1e20),
    "tiny": lambda p: torch.full_like(p, 1e-30),
}
X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def net(fill: str = "one magnitude", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(64, 24)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(FILLS[fill](parameter))
    return model.to(dtype)


def converted(
    fill: str = "one magnitude",
    method: str = "st3",
    dtype: torch.dtype = torch.float32,
    total_steps: int | None = 10,
    **settings: Any,
) -> tuple[Any, Any]:
    own = METHODS[method](**settings)
    return st3fx.convert(net(fill, dtype), (X.to(dtype),), own, total_steps=total_steps)


def pruned(sparsifier: Any, budget: str) -> tuple[int, int]:
    """What the zeros cost, and all weights."""
    zeros = whole = 0
    for site in sparsifier.plan.sites:
        cost = site.cost if budget == "macs" else 1
        weight = sparsifier.effective_weights()[site.name]
        zeros += cost * int((weight == 0).sum())
        whole += cost * weight.numel()
    return zeros, whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["unstructured", "block:4", "channels"])
@pytest.mark.parametrize(
    ("budget", "dtype"),
    [("weights", torch.float32), ("macs", torch.float64), ("weights", torch.bfloat16)],
)
@pytest.mark.filterwarnings("ignore::st3fx.errors.EmptyLayerWarning")
def test_the_target_is_reached_to_one_weight(
    method: str, granularity: str, budget: Any, dtype: torch.dtype
) -> None:
    own = METHODS[method](sparsity=0.7, granularity=granularity, budget=budget)
    model, sparsifier = st3fx.convert(net(dtype=dtype), X.to(dtype), own, total_steps=5)
    costs = [site.cost if budget == "macs" else 1 for site in sparsifier.plan.sites]
    groups = [own.granularity.largest(site) for site in sparsifier.plan.sites]
    one = max(cost * group for cost, group in zip(costs, groups, strict=True))
    for fill in FILLS:
        model.load_state_dict(net(fill, dtype).state_dict(), strict=False)
        sparsifier.set_sparsity(0.7)
        zeros, whole = pruned(sparsifier, budget)
        assert abs(zeros - 0.7 * whole) <= one, (fill, zeros / whole)


def test_what_goes_is_spread_over_sites_and_channels() -> None:
    _, sparsifier = converted(sparsity=0.8)
    sparsifier.set_sparsity(0.8)
    for weight in sparsifier.effective_weights().values():
        shares = (weight == 0).flatten(1).float().mean(1)
        assert shares.min() > 0.6
        assert shares.max() < 1


def test_the_rule_is_of_positions() -> None:
    """Given to the letter: what every version must go on doing."""
    weight = torch.full((4, 6), 0.5)
    found = search.GlobalThreshold()
    found.find([weight], [1.0], 0.5)
    keys = [(place * 2654435769) % 2**32 for place in range(24)]
    going = sorted(range(24), key=keys.__getitem__)[:12]
    latent, threshold = ties.untied(weight, found.ties[0])
    gone = (latent.abs() <= threshold).flatten().nonzero().flatten()
    assert gone.tolist() == sorted(going)
    assert found.ties[0][1] == 0.5
    assert 0.4999999 < found.ties[0][0] < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_it_does_not_depend_on_kernels_or_memory(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = []
    for library, form in (
        (True, torch.contiguous_format), (True, torch.channels_last),
        (False, torch.contiguous_format),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            if not library:
                patch.setattr("st3fx.native.latent.available", lambda: False)
            own = METHODS[method](sparsity=0.6)
            model = net("three").to(memory_format=form)
            _, sparsifier = st3fx.convert(model, X, own, total_steps=5)
            sparsifier.set_sparsity(0.6)
            weights = sparsifier.effective_weights()
            zeros.append({name: (weight == 0) for name, weight in weights.items()})
    for others in zeros[1:]:
        assert all(torch.equal(mask, others[name]) for name, mask in zeros[0].items())


@pytest.mark.parametrize("granularity", [Unstructured(), Block(4)], ids=["single", "blocks"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_mask(method: str, granularity: Granularity) -> None:
    """Of pruned weights: as they are (straight through), none (GMP), half of them (Feather)."""
    own = METHODS[method](sparsity=0.96, granularity=granularity)
    converted, sparsifier = st3fx.convert(net(), X, own, total_steps=5)
    sparsifier.set_sparsity(0.5)
    zeros = 0
    for name, weight in converted.named_parameters():  # a forward has them in its graph
        if name.endswith("weight"):
            bound = next(b for b in sparsifier._bound() if b.site.name == name)
            effective = bound.effective()
            (grad,) = torch.autograd.grad(effective.sum(), weight)
            kept = 1.0 if own.straight_through or method != "gmp" else 0.0
            kept = 0.5 if method == "feather" else kept
            expected = torch.where(effective != 0, 1.0, kept)
            zeros += int((effective == 0).sum())
            torch.testing.assert_close(grad, expected, rtol=0, atol=0)
    assert zeros


def test_it_is_the_same_in_copies_files_and_folds(tmp_path: Any) -> None:
    model, sparsifier = converted("three", sparsity=0.7)
    sparsifier.set_sparsity(0.7)
    assert any(ties.is_split(item.tensors("threshold")[0]) for item in sparsifier._bound())
    expected, weights = model.eval()(X), sparsifier.effective_weights()
    assert torch.equal(copy.deepcopy(model)(X), expected)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    for steps in (10, None):
        again, its = converted("one of each layer", sparsity=0.7, total_steps=steps)
        again.load_state_dict(torch.load(tmp_path / "state.pt"))
        for name, weight in its.effective_weights().items():
            assert torch.equal(weight, weights[name])
        assert torch.equal(again.train()(X), model.train()(X))  # before anything is set anew
        other, its = converted("one of each layer", sparsity=0.7)
        other.load_state_dict({k: v for k, v in model.state_dict().items() if "st3fx" not in k})
        its.load_state_dict(sparsifier.state_dict())
        assert torch.equal(other.eval()(X), expected)
    untied, its = converted("bfloat16", sparsity=0.7)
    untied.load_state_dict(model.state_dict())
    model.load_state_dict(converted("huge", sparsity=0.7)[0].state_dict())  # and back to one number
    assert not any(ties.is_split(item.tensors("threshold")[0]) for item in sparsifier._bound())
    assert torch.equal(st3fx.fold(untied.eval())(X), expected)


def test_freezing_and_zeros_to_keep() -> None:
    model = net("three")
    with torch.no_grad():
        model[2].weight.flatten()[: 12 * 16 * 9 // 2] = 0.0
    model, sparsifier = st3fx.convert(model, X, methods.GMP(0.7), total_steps=5, keep_zeros=True)
    sparsifier.set_sparsity(0.7)
    before = sparsifier.effective_weights()
    zeros, whole = pruned(sparsifier, "weights")
    assert abs(zeros - 0.7 * whole) <= 1
    sparsifier.freeze()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = sparsifier.effective_weights()
    assert all(torch.equal(after[name] == 0, weight == 0) for name, weight in before.items())


def test_training_splits_and_resumes_in_the_same_way() -> None:
    def run(steps: int, state: Any = None) -> tuple[Any, Any, Any]:
        model, sparsifier = converted(
            "bfloat16", sparsity=0.9, total_steps=8, schedule=st3fx.CubicSchedule(0.0, 0.5)
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.25)
        if state is not None:
            model.load_state_dict(state)
        for _ in range(steps):
            model(X).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():  # in eighths of a magnitude
                    parameter.grad = (parameter.grad * 64).round() / 64
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.bfloat16())
            optimizer.zero_grad()
            sparsifier.step()
        return model, sparsifier, copy.deepcopy(model.state_dict())

    model, sparsifier, _ = run(8)
    half = run(4)[2]
    again, _, _ = run(4, half)
    pairs = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    zeros, whole = pruned(sparsifier, "weights")
    assert abs(zeros - 0.9 * whole) <= 1


def test_chance_changes_no_shape() -> None:
    """A few equal scores, as large models have: one weight more or less, and one number."""
    torch.manual_seed(0)
    weights = [torch.randn(40, 50), torch.randn(30, 20)]
    flat = weights[0].flatten()
    flat[(flat.abs() - 0.7).abs().topk(2, largest=False).indices] = 0.7
    share = float((torch.cat([w.flatten() for w in weights]).abs() < 0.7).float().mean())
    found = search.GlobalThreshold()
    level = found.find(weights, [1.0, 1.0], share + 1e-6)
    assert level == pytest.approx(0.7, abs=1e-3)
    assert not found.ties


def test_a_threshold_that_rounds_to_a_tie_spares_it() -> None:
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    weight = torch.cat([low.repeat(90), high.repeat(10)])
    weight[:89] = torch.linspace(0.1, 0.9, 89)
    found = search.GlobalThreshold()
    level = found.find([weight], [1.0], 89.9 / 99)  # 0.9 of the way from the 90th to the 91st
    assert level == high
    latent, threshold = ties.untied(weight, found.ties[0])
    assert int((latent.abs() <= threshold).sum()) == 90


def test_zeros_are_not_split_nor_kept() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    _, sparsifier = st3fx.convert(model, X, methods.ST3(0.5), total_steps=5)
    with pytest.warns(st3fx.errors.EmptyLayerWarning):
        sparsifier.set_sparsity(0.5)
    assert sparsifier.sparsity == 1.0  # there is nothing else


def test_a_single_weight_stays_or_goes() -> None:
    model = nn.Linear(1, 1)
    _, sparsifier = st3fx.convert(model, torch.ones(1, 1), methods.ST3(0.5), total_steps=5)
    with pytest.warns(st3fx.errors.EmptyLayerWarning):
        sparsifier.set_sparsity(0.5)
    assert sparsifier.sparsity in (0.0, 1.0)


@pytest.mark.parametrize(("value", "what"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_what_is_no_number_is_named(value: float, what: str) -> None:
    model, sparsifier = converted()
    with torch.no_grad():
        model[2].weight.copy_(torch.full_like(model[2].weight, value))
    with pytest.raises(StateError, match=rf"some weights are {what} in 2\.weight: the training"):
        sparsifier.set_sparsity(0.9)


def test_effective_weights_that_are_kept_are_those_of_the_tie() -> None:
    model, sparsifier = converted("three", sparsity=0.7)
    model.train()(X)
    sparsifier.set_sparsity(0.7)
    served: list[Tensor] = []
    for item in sparsifier._bound():
        found = cache.lookup(item.inputs(), differentiable=True)
        assert found is not None
        served.append(found)
        assert torch.equal(found, item.static())
        name = state_name(item.parameter, "threshold")
        assert item.owner.__dict__[name] is item.tensors("threshold")[0]
    assert len(served) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_search_has_counted_what_a_pass_of_its_own_finds(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    # Few numbers, so that many are alike, and neighbours in the dtype.
    grid = 0.05 * (1 + torch.finfo(dtype).eps * torch.arange(-40, 40))
    sizes = [(300, 7), (40, 50), (5, 4, 3, 3)]
    picks = [torch.randint(len(grid), size, generator=generator) for size in sizes]
    weights = [grid[pick].to(dtype) * (1 - 2 * (pick % 2)) for pick in picks]
    counted, from_band = [], split_ties._counted

    def checked(layers: Any, level: float, band: Any) -> Any:
        found = from_band(layers, level, band)
        counted.append(bool(found))
        for own, layer in zip(found, layers, strict=bool(found)):
            other = split_ties._tied(layer, level)
            assert (own.lower, own.count) == (other.lower, other.count)
            if own.count:
                going = range(own.count + 1)
                ours, theirs = (
                    [split_ties._threshold(site, n, 9).tolist() for n in going]
                    for site in (own, other)
                )
                assert ours == theirs
        return found

    monkeypatch.setattr(split_ties, "_counted", checked)
    finder = search.GlobalThreshold()
    for share in (0.1, 0.3, 0.31, 0.5, 0.52, 0.9, 0.99):
        finder.find(weights, [1.0] * 3, share)
    assert len(counted) >= 5
    assert sum(counted) >= 4
