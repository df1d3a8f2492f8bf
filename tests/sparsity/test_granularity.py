"""Groups of weights: against loops over single weights, on every layout of memory."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx import methods, native
from st3fx.errors import FoldError, GranularityWarning, MethodError, PlanError
from st3fx.methods.st3 import effective_weight
from st3fx.native import latent
from st3fx.plan.sites import Layout, Site
from st3fx.sparsity.granularity import (
    NM,
    Block,
    Channels,
    Granularity,
    Unstructured,
    magnitudes,
    parse,
    scores,
)
from st3fx.sparsity.threshold.search import GlobalThreshold

SITES = [
    ("conv2d", (6, 10, 3, 3), Layout((0,)), 1),
    ("conv2d", (6, 8, 1, 1), Layout((0,)), 1),
    ("conv2d", (5, 3, 7, 7), Layout((0,)), 1),
    ("conv2d", (12, 1, 3, 3), Layout((0,)), 12),
    ("linear", (7, 19), Layout((0,)), 1),
    ("linear", (70, 260), Layout((0,)), 1),
    ("matmul", (19, 7), Layout((1,)), 1),
    ("einsum", (3, 12, 5), Layout((0, 2)), 1),
    ("conv_transpose2d", (12, 4, 3, 3), Layout((0, 2), 3), 3),
    ("linear", (4, 9), Layout(()), 1),
]
GRANULARITIES = [Block(4), Block(3), NM(2, 4), NM(1, 3), NM(5, 7), Channels()]


def site_of(op: str, shape: tuple[int, ...], layout: Layout, groups: int) -> Site:
    return Site("w", ("w",), shape, op, layout, ("",), groups=groups)


SITE_LIST = [site_of(*args) for args in SITES]


def name_of(value: Any) -> str:
    if isinstance(value, Granularity):
        return value.text
    return f"{value.op}-{'x'.join(map(str, value.shape))}"


def _groups_of(site: Site, granularity: Granularity) -> list[list[tuple[int, ...]]]:
    view = site.layout.groups
    shape = (view, site.shape[0] // view, *site.shape[1:]) if view > 1 else site.shape
    dims = range(len(shape))
    inputs = [dim for dim in dims if dim not in site.layout.channel_dims]
    places = list(itertools.product(*map(range, shape)))
    if not site.layout.channel_dims:
        return [[place] for place in places]
    if isinstance(granularity, Channels):
        step, along = None, inputs
    else:
        step = granularity.size if isinstance(granularity, Block) else granularity.m  # type: ignore[attr-defined]
        along = [inputs[0] if "conv" in site.op else inputs[-1]]
        if isinstance(granularity, Block) and shape[along[0]] < step:
            return [[place] for place in places]
    found: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}
    for place in places:
        key = [None if dim in along else at for dim, at in enumerate(place)]
        key += [place[along[0]] // step] if step else []
        found.setdefault(tuple(key), []).append(place)
    return list(found.values())


@functools.cache
def groups_of(site: Site, granularity: Granularity) -> list[list[tuple[int, ...]]]:
    """Every group as the indices of its weights, by the definition."""
    return list(_groups_of(site, granularity))


def by_loops(site: Site, granularity: Granularity, weight: Tensor) -> tuple[Tensor, list[Any]]:
    """Magnitude of each weight, and (score, weights) of each group that can go."""
    view = site.layout.groups
    seen = weight.unflatten(0, (view, -1)) if view > 1 else weight
    result = torch.full_like(seen, torch.finfo(weight.dtype).max)
    found = []
    for group in groups_of(site, granularity):
        going = group
        if isinstance(granularity, NM):
            order = sorted(group, key=lambda at: (abs(float(seen[at])), [-i for i in at]))
            going = order[: max(0, len(group) - granularity.n)]
            if not site.layout.channel_dims:
                going = []
        if going:
            score = math.sqrt(sum(float(seen[at]) ** 2 for at in going) / len(going))
            found.append((score, len(going)))
            for at in going:
                result[at] = score
    return result.reshape(weight.shape), found


@pytest.fixture(params=["torch", *native.available_isas()])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "torch":
        monkeypatch.setattr(latent, "available", lambda: False)
        yield request.param
    else:
        with native.using_isa(request.param):
            yield request.param


def weight_of(site: Site, *, channels_last: bool = False) -> Tensor:
    weight = torch.randn(site.shape, generator=torch.Generator().manual_seed(len(site.shape)))
    flat = weight.view(-1)
    flat[5:9] = flat[5]  # equal ones
    if channels_last and weight.dim() == 4:
        return weight.to(memory_format=torch.channels_last)
    return weight


EXTREMES = torch.tensor([1e20, 1e-30, 1.0, 1e-19, 1e35, 0.0, 1e-40])
"""Squares of most of these leave the range of fp32; those of some are denormal."""


def extreme_weight_of(site: Site, *, mixed: bool) -> Tensor:
    """Weights of very different sizes: in each group, or from one output to the next."""
    weight = weight_of(site)
    places = (weight.numel(),) if mixed else (len(weight),)
    scales = EXTREMES[torch.arange(places[0]) % len(EXTREMES)]
    return weight * (
        scales.view_as(weight) if mixed else scales.view(-1, *[1] * (weight.dim() - 1))
    )


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=name_of)
def test_weights_of_extreme_size(granularity: Granularity, isa: str) -> None:
    """No square overflows or vanishes: magnitudes, effective weights and gradients are right."""
    for site, mixed in itertools.product(SITE_LIST, (True, False)):
        constants = granularity.constants(site)
        if not constants or site.numel > 10_000:
            continue
        weight = extreme_weight_of(site, mixed=mixed)
        expected, _ = by_loops(site, granularity, weight.double())
        own = magnitudes(weight, *constants)
        expected = expected.clamp_max(torch.finfo(torch.float32).max)
        torch.testing.assert_close(own.double(), expected, rtol=1e-6, atol=1e-44)
        for level in (1e19, 3e-31):
            threshold = torch.tensor(level)
            effective = effective_weight(weight, threshold, site.layout, False, constants)
            wanted = weight.double() * (1 - float(threshold) / expected).clamp_min(0)
            wanted[wanted.abs() < torch.finfo(torch.float32).tiny] = 0
            torch.testing.assert_close(effective.double(), wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("op", ["sigmoid_threshold", "trained_threshold"])
def test_gradients_of_weights_of_extreme_size(op: str, isa: str) -> None:
    """As in double precision, where no square leaves the range."""
    site, granularity = SITE_LIST[0], Block(4)
    for scale in (1e20, 1e-25):
        weight = weight_of(site).mul_(scale)
        constants: tuple[Any, ...]
        if op == "sigmoid_threshold":
            constants, level = (), torch.tensor([-60.0])
        else:
            constants, level = ([0], 1), torch.full((6, 1, 1, 1), 0.5 * scale)
        found = []
        for dtype in (torch.float32, torch.float64):
            w, t = (tensor.to(dtype).requires_grad_() for tensor in (weight, level))
            mask = torch.empty(0, dtype=torch.bool)
            result = getattr(torch.ops.st3fx, op)(
                w, t, mask, *constants, *granularity.constants(site)
            )
            found.append([g.double() for g in torch.autograd.grad(result.sum(), (w, t))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=name_of)
def test_magnitudes_and_scores(granularity: Granularity, isa: str) -> None:
    for site in SITE_LIST:
        require_magnitudes(site, granularity, channels_last=False)
        require_magnitudes(site, granularity, channels_last=True)


def require_magnitudes(site: Site, granularity: Granularity, *, channels_last: bool) -> None:
    weight = weight_of(site, channels_last=channels_last)
    expected, found = by_loops(site, granularity, weight)
    own = magnitudes(weight, *granularity.constants(site))
    if granularity.grouping(site) is None:
        assert torch.equal(own, weight.abs())
        return
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=0)
    assert own.stride() == weight.stride()
    grouping = granularity.grouping(site)
    assert grouping is not None
    given = [
        (float(value), part.weights)
        for part in scores(weight, weight.shape, grouping)
        for value in part.values.reshape(-1)
    ]
    np.testing.assert_allclose(sorted(s for s, _ in given), sorted(s for s, _ in found), rtol=1e-6)
    assert granularity.prunable(site) == sum(count for _, count in found)
    # What is searched and what is compared are the same numbers.
    if not found:
        return
    values = torch.cat([part.values.reshape(-1) for part in scores(weight, weight.shape, grouping)])
    assert set(own[own < torch.finfo().max].tolist()) == set(values.tolist())


def test_the_library_gives_the_bits_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(itertools.product(SITE_LIST, GRANULARITIES))

    def every() -> list[Tensor]:
        made = (weight_of, partial(extreme_weight_of, mixed=True))
        return [magnitudes(w(site), *own.constants(site)) for w in made for site, own in cases]

    found = []
    for name in native.available_isas():
        with native.using_isa(name):
            found.append(every())
    monkeypatch.setattr(latent, "available", lambda: False)
    for one, *others in zip(every(), *found, strict=True):
        assert all(torch.equal(one, other) for other in others)


def test_every_instruction_set_gives_the_same_effective_weights() -> None:
    found = []
    for name in native.available_isas():
        with native.using_isa(name):
            found.append([
                effective_weight(
                    make(site), torch.tensor(0.7), site.layout, True, own.constants(site)
                )
                for make in (weight_of, partial(extreme_weight_of, mixed=True))
                for site, own in itertools.product(SITE_LIST, GRANULARITIES)
            ])  # fmt: skip
    for one, *others in zip(*found, strict=True):
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=name_of)
def test_the_effective_weight_is_the_proximal_step(granularity: Granularity, isa: str) -> None:
    for site in SITE_LIST:
        require_proximal_step(site, granularity, rescale=True)
        require_proximal_step(site, granularity, rescale=False)


def require_proximal_step(site: Site, granularity: Granularity, *, rescale: bool) -> None:
    weight = weight_of(site)
    if site.numel > 10_000:
        weight[0, :4] = torch.tensor([1e-42, 2.0, -1e-42, 1.0])  # denormal in a group that stays
    threshold, constants = torch.tensor(0.7), granularity.constants(site)
    layout = site.layout
    own = effective_weight(weight, threshold, layout, rescale, constants)
    if not constants:
        assert torch.equal(own, effective_weight(weight, threshold, layout, rescale))
        return
    magnitude, _ = by_loops(site, granularity, weight.double())
    w = weight.double()
    expected = w * (1 - 0.7 / magnitude).clamp_min(0)
    if rescale:
        view = w.unflatten(0, (layout.groups, -1)) if layout.groups > 1 else w
        others = [dim for dim in range(view.dim()) if dim not in layout.channel_dims]
        kept = (w.abs() * (magnitude > 0.7)).reshape(view.shape).mean(others, keepdim=True)
        rho = (kept + 1e-6) / (view.abs().mean(others, keepdim=True) + 1e-6)
        expected = (expected.reshape(view.shape) * 1.01 / (rho + 0.01)).reshape(w.shape)
    torch.testing.assert_close(own.double(), expected, rtol=3e-5, atol=1e-6)
    assert torch.equal(own != 0, expected.float().abs() >= torch.finfo().tiny)
    assert not torch.signbit(own[own == 0]).any()


def test_the_threshold_weighs_groups_by_their_weights() -> None:
    """It is the smallest score up to which a share of all weights goes."""
    for granularity in (Block(4), Block(3), Channels(), NM(2, 4)):
        chosen = [site for site in SITE_LIST if site.numel < 1000]
        tensors = [weight_of(site) * (1 + i) for i, site in enumerate(chosen)]
        every = sorted(
            pair
            for site, weight in zip(chosen, tensors, strict=True)
            for pair in by_loops(site, granularity, weight)[1]
        )
        total = sum(count for _, count in every)
        for share in (0.01, 0.3, 0.5, 0.9, 0.999, *([1.0] if granularity.most < 1 else [])):
            found = GlobalThreshold().find(
                tensors, [1.0] * len(tensors), share,
                groupings=[granularity.grouping(site) for site in chosen],
            )  # fmt: skip
            spent = np.cumsum([count for _, count in every])
            score, _ = every[int(np.argmax(spent >= total * share))]
            assert float(found) == pytest.approx(score, rel=1e-6), (granularity, share)


def test_texts() -> None:
    for granularity in (Unstructured(), *GRANULARITIES):
        assert parse(granularity.text) == granularity
    for text in ("block", "block:1", "block:x", "nm:4:2", "nm:0:4", "nm:2", "rows", ""):
        with pytest.raises(MethodError):
            parse(text)


def test_settings() -> None:
    assert methods.ST3(granularity=NM(2, 4)).sparsity == 0.5
    assert methods.ST3(granularity=NM(1, 4)).sparsity == 0.75
    assert methods.ST3(granularity=Block(4)).sparsity == 0.9
    with pytest.raises(MethodError, match=r"nm:2:4 has a sparsity of 0.5, not 0.9: leave"):
        methods.ST3(0.9, granularity=NM(2, 4))
    for method in (methods.STR, methods.DST):
        with pytest.raises(MethodError, match="needs a method with a schedule"):
            method(granularity=NM(2, 4))
    for made in (methods.ST3(0.8, granularity=Block(8)), methods.DST(granularity=Channels())):
        assert methods.from_dict(methods.to_dict(made)) == made
    assert methods.create("st3-sigma", granularity="nm:2:4").target == 0.5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 18, 3, groups=3)
        self.proj = nn.Parameter(torch.randn(18, 12))
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.up(self.conv(self.stem(x).relu()).relu()).mean((2, 3))
        return self.fc((x @ self.proj).relu())


def trained(method: methods.Method, steps: int = 8) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model, sparsifier = st3fx.convert(Net(), x, method, total_steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsifier.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        (model.train()(x).square().mean() + sparsifier.penalty()).backward()
        optimizer.step()
    return model, sparsifier


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=name_of)
@pytest.mark.parametrize("method", [methods.ST3, methods.GMP, methods.Feather])
def test_a_training_ends_with_groups(method: Any, granularity: Granularity) -> None:
    settings = {} if granularity.most < 1 else {"sparsity": 0.6}
    model, sparsifier = trained(method(**settings, granularity=granularity))
    folded = st3fx.fold(model)
    sites = sparsifier.plan.sites
    wanted = sparsifier.method.reached(sites, sparsifier.target)  # type: ignore[attr-defined]
    step = max(granularity.largest(site) for site in sites) / sparsifier.plan.numel
    assert wanted - 1e-9 <= sparsifier.sparsity <= wanted + step
    for site in sites:
        weight = folded.get_parameter(site.name)
        view = weight.unflatten(0, (site.layout.groups, -1)) if site.layout.groups > 1 else weight
        for group in groups_of(site, granularity):
            left = sum(bool(view[at] != 0) for at in group)
            most = granularity.n if isinstance(granularity, NM) else len(group)
            assert left <= most
            assert isinstance(granularity, NM) or left in (0, len(group))


@pytest.mark.parametrize("granularity", [Block(4), Channels()], ids=name_of)
@pytest.mark.parametrize("site", [s for s in SITE_LIST if s.numel < 1000], ids=name_of)
def test_learned_gradients_of_groups(site: Site, granularity: Granularity) -> None:
    """STR's are those of its formula."""
    constants = granularity.constants(site)
    weight = weight_of(site).double()

    def own(w: Tensor, s: Tensor) -> Tensor:
        mask = torch.empty(0, dtype=torch.bool)
        result: Tensor = torch.ops.st3fx.sigmoid_threshold(w, s, mask, *constants)
        return result

    def plain(w: Tensor, s: Tensor) -> Tensor:
        level, result = s.sigmoid(), torch.zeros_like(w)
        view = site.layout.groups
        seen = w.unflatten(0, (view, -1)) if view > 1 else w
        scale = torch.zeros_like(seen)
        for group in groups_of(site, granularity):
            at = tuple(torch.tensor(index) for index in zip(*group, strict=True))
            norm = seen[at].square().mean().sqrt()
            scale = scale.index_put(at, (1 - level / norm).clamp_min(0))
        result = seen * scale
        return result.reshape(w.shape)

    upstream = torch.randn(site.shape, dtype=torch.float64)
    grads = []
    for function in (own, plain):
        w = weight.clone().requires_grad_()
        s = torch.tensor([-0.4], dtype=torch.float64, requires_grad=True)
        result = function(w, s)
        grads.append((result, *torch.autograd.grad((result * upstream).sum(), (w, s))))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_dst_gradients_of_blocks() -> None:
    """Each by the definition: the derivative of the norm, with the long-tailed estimate."""
    torch.manual_seed(0)
    w, t = torch.randn(3, 8), torch.tensor([[0.3], [0.9], [-1.0]])
    up = torch.randn(3, 8)
    op = torch.ops.st3fx.trained_threshold
    latent_weight, threshold = w.clone().requires_grad_(), t.clone().requires_grad_()
    constants = ([0], 1, [1], 0, 4, 1)
    out = op(latent_weight, threshold, torch.empty(0, dtype=torch.bool), *constants)
    (out * up).sum().backward()
    for k in range(3):
        total = 0.0
        for start in (0, 4):
            own, upstream = w[k, start : start + 4], up[k, start : start + 4]
            norm = float(own.square().mean().sqrt())
            x = abs(norm - float(t[k, 0]))
            slope = 0.0 if t[k, 0] < 0 or x > 1 else 2 - 4 * x if x <= 0.4 else 0.4
            kept = norm > float(t[k, 0])
            inner = float((own * upstream).sum())
            expected = upstream * kept + slope * inner * own / (4 * norm)
            assert latent_weight.grad is not None
            torch.testing.assert_close(latent_weight.grad[k, start : start + 4], expected)
            total -= slope * inner
        assert threshold.grad is not None
        assert float(threshold.grad[k, 0]) == pytest.approx(total, rel=1e-5)


def test_n_of_m_has_no_more_sparsity_than_it_has() -> None:
    model, sparsifier = st3fx.convert(
        Net(), torch.randn(1, 3, 8, 8), st3fx.ST3(granularity=st3fx.NM(1, 2)), total_steps=4
    )
    with pytest.raises(MethodError, match=r"sparsity 0.6 is more than nm:1:2 has: give 0.5 or"):
        sparsifier.set_sparsity(0.6)
    for sparsity in (0.1, 0.3, 0.5):  # every sparsity between exists, to one group
        sparsifier.set_sparsity(sparsity)
        wanted = sparsifier.method.reached(sparsifier.plan.sites, sparsity)  # type: ignore[attr-defined]
        assert wanted <= sparsifier.sparsity <= wanted + 1 / sparsifier.plan.numel
    before = {name: weight.clone() for name, weight in sparsifier.effective_weights().items()}
    folded = st3fx.fold(model)
    assert all(torch.equal(folded.get_parameter(name), w) for name, w in before.items())


def test_a_fold_checks_every_group() -> None:
    model, sparsifier = st3fx.convert(
        Net(), torch.randn(1, 3, 8, 8), st3fx.ST3(granularity=st3fx.NM(2, 4)), total_steps=4
    )
    sparsifier.set_sparsity(0.5)
    sparsifier.freeze()
    state = sparsifier.state_dict()
    state["masks"]["fc.weight"].fill_(True)
    state["thresholds"]["fc.weight"].zero_().sub_(1)  # as a file that was edited has it
    sparsifier.load_state_dict(state)
    with pytest.raises(FoldError, match=r"fc.weight: 30 groups have more weights left than nm:2:4"):
        st3fx.fold(model)


def test_masked_weights_count_as_zeros() -> None:
    """Zeros that a model came with are in the magnitudes of their groups."""
    net = Net()
    with torch.no_grad():
        net.conv.weight[:, :8] = 0
    _, sparsifier = st3fx.convert(
        net, torch.randn(1, 3, 8, 8), st3fx.ST3(0.6, granularity=st3fx.Block(4)), total_steps=4
    )
    sparsifier.set_sparsity(0.6)
    assert not sparsifier.effective_weights()["conv.weight"][:, :8].any()
    assert sparsifier.sparsity == pytest.approx(0.6, abs=0.002)


@pytest.mark.parametrize("method", ["st3", "gmp", "feather", "str", "dst"])
def test_half_precision_and_copies(method: str) -> None:
    settings = {"granularity": "block:4"} | (
        {"sparsity": 0.5} if method not in ("str", "dst") else {}
    )
    x = torch.randn(1, 3, 8, 8)
    model, sparsifier = st3fx.convert(Net(), x, methods.create(method, **settings), total_steps=4)
    if sparsifier.target is not None:
        sparsifier.set_sparsity(0.5)
    copied = pickle.loads(pickle.dumps(model.eval()))
    assert torch.equal(copied(x), model(x))
    half = copy.deepcopy(model).bfloat16()
    loss = half.train()(x.bfloat16()).float().square().mean()
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.bfloat16 for p in half.parameters())


def converted(model: nn.Module, x: Tensor, method: methods.Method) -> Any:
    return st3fx.convert(model, x, method, total_steps=20)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("normalize", [None, "sigma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_group_goes_too(seed: int, normalize: Any, dtype: torch.dtype) -> None:
    """Scores and thresholds are rounded, in double precision and where a layer is scaled."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24)).to(dtype)
    x = torch.randn(3, 16, dtype=dtype)
    for n, m in ((2, 4), (1, 3), (1, 32)):
        method = methods.ST3(normalize=normalize, granularity=NM(n, m))
        model, sparsifier = converted(net, x, method)
        sparsifier.set_sparsity(method.target)
        st3fx.fold(model)
    for parameter in net.parameters():
        parameter.data.copy_(parameter.data.sign().mul_(0.7))
    for granularity in (Block(4), Channels()):
        _, sparsifier = converted(net, x, methods.ST3(0.5, granularity=granularity))
        sparsifier.set_sparsity(0.5)
        assert sparsifier.sparsity == 0.5  # all are equal


@pytest.mark.parametrize("granularity", [Block(4), NM(2, 4), Channels()], ids=name_of)
@pytest.mark.parametrize("zeros", [0.3, 0.6, 0.9])
def test_zeros_that_a_model_comes_with(granularity: Granularity, zeros: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    for index in (0, 2):
        net.get_parameter(f"{index}.weight").data.mul_(torch.rand(64, 64) > zeros)
    model, sparsifier = converted(
        net, torch.randn(8, 64), methods.ST3(0.5, granularity=granularity)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier.attach(optimizer)
    for _ in range(24):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    wanted = max(0.5, sparsifier.run.floor)
    assert wanted - 1e-6 <= sparsifier.sparsity <= wanted + 64 / 8192
    st3fx.fold(model)


def test_a_model_without_groups_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    x = torch.randn(1, 3, 8, 8)
    said = r"block:4 finds no groups in the weights.* 0.weight of shape \(4, 3, 3, 3\): they are"
    with pytest.warns(GranularityWarning, match=said) as found:
        converted(net, x, methods.ST3(0.5, granularity=Block(4)))
    assert len(found) == 1
    assert found[0].filename == __file__
    converted(net, x, methods.ST3(0.5, granularity=Block(3)))  # the first has groups
    converted(net, x, methods.ST3(0.5, granularity=Channels()))


def test_what_cannot_be_is_said_in_a_line() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(PlanError, match="nm:2:4 can prune none of the 1 weights"):
        converted(net, torch.randn(1, 4, 8, 8), methods.ST3(granularity=NM(2, 4)))
    assert methods.ST3(granularity="block:8").granularity == Block(8)  # type: ignore[arg-type]
    assert methods.ST3(2 / 3, granularity=NM(1, 3)).target == NM(1, 3).most
    wrong: Any
    for wrong in (4, None, Block):
        with pytest.raises(MethodError, match="granularity="):
            methods.GMP(granularity=wrong)
        with pytest.raises(MethodError, match="granularity="):
            methods.DST(granularity=wrong)
    for wrong in ("4", None, 4.0, True):
        with pytest.raises(MethodError):
            Block(wrong)
        with pytest.raises(MethodError):
            NM(1, wrong)
