"""Each method's effective weight and gradients, against its paper's formula in double precision.

The formulas are written again here, one output channel at a time, from the docstrings alone. The
rules by which masks move are compared in ``test_moving_rules.py``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from st3fx.methods import METHODS, Method, create
from st3fx.plan.sites import Layout, Site
from st3fx.sparsity.drawing import decided, with_draw

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NO_MASK = torch.empty(0, dtype=torch.bool)
NAMES = ["st3", "dst", "str", "feather", "gmp", "lrr"]


class Shape(NamedTuple):
    """A weight's shape, its layout, and the output channel of an element from its indices."""

    shape: tuple[int, ...]
    layout: Layout
    channel: Callable[[list[Tensor]], Tensor]


SHAPES = {
    "conv": Shape((8, 3, 3, 3), Layout((0,)), lambda i: i[0]),
    "linear": Shape((10, 33), Layout((0,)), lambda i: i[0]),
    "matmul": Shape((33, 10), Layout((1,)), lambda i: i[1]),
    "batched matmul": Shape((3, 9, 4), Layout((0, 2)), lambda i: 4 * i[0] + i[2]),
    "grouped transposed": Shape((6, 4, 3, 3), Layout((0, 2), 3), lambda i: 4 * (i[0] // 2) + i[1]),
    "whole": Shape((7, 9), Layout(()), lambda i: 0 * i[0]),
}
shapes = pytest.mark.parametrize("kind", SHAPES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
names = pytest.mark.parametrize("name", NAMES)


def site(kind: str) -> Site:
    shape, layout, _ = SHAPES[kind]
    return Site("w", ("w",), shape, "any", layout, ("",), groups=layout.groups)


def channels(kind: str) -> list[Tensor]:
    """For each output channel, which elements are its own."""
    shape, _, channel = SHAPES[kind]
    grid = list(torch.meshgrid(*map(torch.arange, shape), indexing="ij"))
    numbers = channel(grid)
    return [numbers == number for number in range(int(numbers.max()) + 1)]


class Case(NamedTuple):
    """One call of an operator, and what it gave."""

    method: Method
    weight: Tensor
    threshold: Tensor
    upstream: Tensor
    effective: Tensor
    weight_grad: Tensor
    threshold_grad: Tensor | None


def run(name: str, kind: str, dtype: torch.dtype, mask: Tensor = NO_MASK, **settings: Any) -> Case:
    """Apply a method at a threshold that prunes about half, and go back through it."""
    method = create(name, **settings)
    generator = torch.Generator().manual_seed(3)
    shape = SHAPES[kind].shape
    weight = (torch.randn(shape, generator=generator) * 0.5).to(dtype).requires_grad_()
    upstream = torch.randn(shape, generator=generator).to(dtype)
    threshold = method.state(site(kind), weight)["threshold"].detach()
    if name == "dst":
        threshold = torch.rand(threshold.shape, generator=generator) * 0.7
    else:
        threshold.fill_(math.log(0.3 / 0.7) if name == "str" else 0.3)
    threshold.requires_grad_(name in ("dst", "str"))
    effective = method.op(weight, threshold, mask, *method.constants(site(kind)))
    effective.backward(upstream)
    assert weight.grad is not None
    return Case(method, weight, threshold, upstream, effective.detach(), weight.grad,
                threshold.grad)  # fmt: skip


def st3_channel(w: Tensor, t: float) -> Tensor:
    m = (w.abs() > t).double()
    rho = ((w.abs() * m).mean() + 1e-6) / (w.abs().mean() + 1e-6)
    return 1.01 / (rho + 0.01) * (w - w.sign() * t) * m


def dst_channel(w: Tensor, t: float) -> Tensor:
    return torch.where(w.abs() > t, w, 0.0)


def str_channel(w: Tensor, s: float) -> Tensor:
    return w.sign() * (w.abs() - 1 / (1 + math.exp(-s))).clamp(min=0)


def feather_channel(w: Tensor, t: float) -> Tensor:
    root = (w.abs() ** 3 - t**3).clamp(min=0) ** (1 / 3)
    return torch.where(w.abs() > t, w.sign() * root, 0.0)


FORWARD = {
    "st3": st3_channel,
    "dst": dst_channel,
    "str": str_channel,
    "feather": feather_channel,
    "gmp": dst_channel,
    "lrr": dst_channel,
}


def long_tail(x: float) -> float:
    if abs(x) <= 0.4:
        return 2 - 4 * abs(x)
    return 0.4 if abs(x) <= 1 else 0.0


def dst_gradient(w: Tensor, t: float, g: Tensor) -> tuple[Tensor, float]:
    pairs = list(zip(w.tolist(), g.tolist(), strict=True))
    slopes = [long_tail(abs(x) - t) for x, _ in pairs]
    grads = [
        up * ((abs(x) > t) + abs(x) * slope) for (x, up), slope in zip(pairs, slopes, strict=True)
    ]
    threshold = -sum(up * x * slope for (x, up), slope in zip(pairs, slopes, strict=True))
    return torch.tensor(grads, dtype=torch.float64), threshold


def str_gradient(w: Tensor, s: float, g: Tensor) -> tuple[Tensor, float]:
    level = 1 / (1 + math.exp(-s))
    kept = w.abs() > level
    return g * kept, -float((g * w.sign() * kept).sum()) * level * (1 - level)


def levels(case: Case, kind: str) -> list[float]:
    """The threshold of each output channel."""
    values = case.threshold.detach().double().flatten().tolist()
    return values if len(values) > 1 else values * len(channels(kind))


@names
@shapes
@dtypes
def test_the_effective_weight(name: str, kind: str, dtype: torch.dtype) -> None:
    case = run(name, kind, dtype)
    assert case.effective.dtype == dtype
    # Computed in single precision at least, and rounded once.
    rtol = max(torch.finfo(dtype).eps / 2, 2e-6) * 1.01 if dtype != torch.float64 else 1e-11
    for own, level in zip(channels(kind), levels(case, kind), strict=True):
        w = case.weight.detach()[own].double()
        expected = FORWARD[name](w, level)
        # Near its threshold Feather's root amplifies the rounding of its argument.
        atol = 1e-4 if name == "feather" and dtype != torch.float64 else 2e-7
        torch.testing.assert_close(case.effective[own].double(), expected, rtol=rtol, atol=atol)
        bound = 1 / (1 + math.exp(-level)) if name == "str" else level
        zeros = case.effective[own][w.abs() <= bound]
        assert not zeros.any()
        assert not torch.signbit(zeros).any()
    pruned = (case.effective == 0).float().mean().item()
    assert 0.2 < pruned < 0.8


@names
@shapes
@dtypes
def test_the_gradients(name: str, kind: str, dtype: torch.dtype) -> None:
    case = run(name, kind, dtype)
    assert case.weight_grad.dtype == dtype
    if name in ("st3", "feather"):  # straight through, as far as Feather's target is below 0.95
        assert torch.equal(case.weight_grad, case.upstream)
        return
    rtol = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    total = 0.0
    for index, (own, level) in enumerate(zip(channels(kind), levels(case, kind), strict=True)):
        w, g = case.weight.detach()[own].double(), case.upstream[own].double()
        if name in ("gmp", "lrr"):
            assert torch.equal(case.weight_grad[own].double(), g * (w.abs() > level))
            continue
        rule = dst_gradient if name == "dst" else str_gradient
        expected, threshold_grad = rule(w, level, g)
        actual_grad = case.weight_grad[own].double()
        torch.testing.assert_close(actual_grad, expected, atol=1e-6, rtol=rtol)
        assert case.threshold_grad is not None
        if name == "dst":
            actual = case.threshold_grad.flatten()[index].item()
            assert actual == pytest.approx(threshold_grad, rel=1e-3, abs=1e-3)
        total += threshold_grad
    if name == "str":
        assert case.threshold_grad is not None
        assert case.threshold_grad.shape == (1,)
        assert case.threshold_grad.dtype == torch.float32
        assert case.threshold_grad.item() == pytest.approx(total, rel=1e-2, abs=1e-2)


@dtypes
@pytest.mark.parametrize(("sparsity", "factor"), [(0.95, 1.0), (0.96, 0.5)])
def test_feather_scales_gradients_of_pruned_weights_above_95_percent(
    sparsity: float, factor: float, dtype: torch.dtype
) -> None:
    case = run("feather", "conv", dtype, sparsity=sparsity)
    kept = case.weight.detach().double().abs() > case.threshold.double()
    expected = torch.where(kept, case.upstream, case.upstream * factor)
    assert torch.equal(case.weight_grad, expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 8.0])
def test_feather_lies_between_soft_and_hard(p: float) -> None:
    case = run("feather", "linear", torch.float64, p=p)
    w, t = case.weight.detach(), case.threshold.double()
    soft, hard = w.sign() * (w.abs() - t).clamp(min=0), torch.where(w.abs() > t, w, 0.0)
    expected = w.sign() * (w.abs() ** p - t**p).clamp(min=0) ** (1 / p)
    torch.testing.assert_close(case.effective, expected, rtol=1e-9, atol=1e-12)
    assert (case.effective.abs() >= soft.abs() - 1e-12).all()
    assert (case.effective.abs() <= hard.abs()).all()


@pytest.mark.parametrize("name", METHODS)
@shapes
@dtypes
def test_inactive_it_is_the_dense_weight(name: str, kind: str, dtype: torch.dtype) -> None:
    method = create(name)
    shape = SHAPES[kind].shape
    weight = torch.randn(shape).to(dtype)
    extremes = [0.0, torch.finfo(dtype).tiny, torch.finfo(dtype).max]
    weight.view(-1)[:3] = torch.tensor(extremes, dtype=dtype)
    weight.requires_grad_()
    state = method.state(site(kind), weight)
    effective = method.op(weight, *state.values(), *method.constants(site(kind)))
    assert torch.equal(effective, weight)
    upstream = torch.randn(shape).to(dtype)
    effective.backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream)
    threshold = state["threshold"]
    assert threshold.grad is None or not threshold.grad.any()


@names
@dtypes
def test_zeros_are_positive_and_nothing_is_denormal(name: str, dtype: torch.dtype) -> None:
    """Thresholds at, just below and just above weights of all magnitudes, and 0."""
    method = create(name)
    info = torch.finfo(dtype)
    powers = torch.arange(-14 if dtype == torch.float16 else -110, 3, 0.37, dtype=torch.float64)
    magnitudes = torch.exp2(powers).to(dtype)
    weight = torch.cat([magnitudes, -magnitudes, torch.tensor([0.0, -0.0], dtype=dtype)])[None]
    near = magnitudes.float()[::5]
    for level in torch.cat([near, near * (1 - 2**-23), near * (1 + 2**-23), torch.zeros(1)]):
        if name == "str":
            if not 0 < level < 1:
                continue
            threshold = torch.logit(level.double()).float().reshape(1)
        else:
            threshold = level.reshape(1, 1) if name == "dst" else level
        constants = method.constants(site("linear"))
        effective = method.op(weight, threshold, NO_MASK, *constants)
        assert effective.isfinite().all()
        assert not torch.signbit(effective[effective == 0]).any(), level
        if dtype != torch.float16:  # whose denormals are part of its working range
            assert not ((effective != 0) & (effective.abs() < info.tiny)).any(), level


@names
@dtypes
def test_frozen_weights_are_zero_and_get_no_gradient(name: str, dtype: torch.dtype) -> None:
    kind = "linear"
    mask = torch.rand(SHAPES[kind].shape) > 0.4
    free, frozen = run(name, kind, dtype), run(name, kind, dtype, mask)
    zeros = frozen.effective[~mask]
    assert not zeros.any()
    assert not torch.signbit(zeros).any()
    assert torch.equal(frozen.effective[mask], free.effective[mask])
    assert not frozen.weight_grad[~mask].any()
    assert torch.equal(frozen.weight_grad[mask], free.weight_grad[mask])
    if name in ("dst", "str"):  # thresholds too learn from the weights that are left
        assert frozen.threshold_grad is not None
        upstream = (free.upstream * mask).double()
        rule = dst_gradient if name == "dst" else str_gradient
        expected = [
            rule(free.weight.detach()[own].double(), level, upstream[own])[1]
            for own, level in zip(channels(kind), levels(free, kind), strict=True)
        ]
        wanted = torch.tensor(expected if name == "dst" else [sum(expected)])
        actual = frozen.threshold_grad.flatten()
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=2e-2, atol=1e-2)


@names
def test_other_memory_layouts_give_the_same_values(name: str) -> None:
    method = create(name)
    weight = torch.randn(8, 3, 3, 3)
    threshold = method.trial(site("conv"), weight)
    constants = method.constants(site("conv"))
    expected = method.op(weight, threshold, NO_MASK, *constants)
    last = weight.to(memory_format=torch.channels_last)
    actual = method.op(last, threshold, NO_MASK, *constants)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    strided = torch.randn(8, 3, 3, 6)[..., ::2].copy_(weight)
    torch.testing.assert_close(
        method.op(strided, threshold, NO_MASK, *constants), expected, rtol=1e-6, atol=0
    )


@names
def test_only_references_are_saved_for_backward(name: str) -> None:
    method = create(name)
    weight = torch.randn(8, 3, 3, 3, requires_grad=True)
    threshold = method.trial(site("conv"), weight).requires_grad_(name in ("dst", "str"))
    packed: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method.op(weight, threshold, NO_MASK, *method.constants(site("conv")))
    expected = [] if name == "st3" else [weight.data_ptr(), threshold.data_ptr()]
    assert packed == expected


@names
def test_the_default_dtype_does_not_reach_thresholds(name: str) -> None:
    torch.set_default_dtype(torch.float64)  # set back by a fixture
    state = create(name).state(site("conv"), torch.randn(8, 3, 3, 3))
    assert state["threshold"].dtype == torch.float32


# opcheck itself looks at the gradients of what it computed.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["dst", "str", "feather", "gmp"])
def test_opcheck(name: str, frozen: bool) -> None:
    method = create(name)
    weight = torch.randn(6, 4, 2, requires_grad=True)
    place = Site("w", ("w",), (6, 4, 2), "any", Layout((0, 2), 3), ("",), groups=3)
    threshold = method.trial(place, weight).requires_grad_(name in ("dst", "str"))
    mask = torch.rand(6, 4, 2) > 0.5 if frozen else NO_MASK
    operator: Any = method.op
    torch.library.opcheck(operator, (weight, threshold, mask, *method.constants(place)))


def test_a_sum_over_a_layer_does_not_overflow_in_half_precision() -> None:
    weight = torch.full((300, 300), 2.0, dtype=torch.float16, requires_grad=True)
    threshold = torch.zeros(1, requires_grad=True)
    create("str").op(weight, threshold, NO_MASK).backward(torch.ones_like(weight))
    assert threshold.grad is not None
    assert threshold.grad.item() == -90_000 / 4


def probmask_inputs(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, probabilities with exact zeros and ones, and the threshold of draw 7."""
    generator = torch.Generator().manual_seed(5)
    shape = SHAPES[kind].shape
    weight = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    probability = torch.rand(shape, generator=generator)
    probability.view(-1)[:8] = torch.tensor([0.0, 1.0] * 4)
    return weight, probability.requires_grad_(), with_draw(torch.tensor(0.5), 7, 0.4)


def murmur(value: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        value = ((value ^ (value >> shift)) * factor) % 2**32
    return value


def noise_at(place: int, salt: int, number: int) -> float:
    seed = murmur(murmur(number) ^ salt)
    u = ((murmur(place * 2654435769 % 2**32 ^ seed) >> 9) + 0.5) / 2**23
    return math.log(u / (1 - u))


@shapes
@dtypes
@pytest.mark.parametrize("hard", [False, True])
def test_probmask(kind: str, dtype: torch.dtype, hard: bool) -> None:
    """Every weight by hand in double precision: noise, mask, and both gradients."""
    method = create("probmask", hard=hard, seed=3)
    weight, probability, threshold = probmask_inputs(kind, dtype)
    salt, _ = constants = method.constants(site(kind))
    assert salt == zlib.crc32(b"3:w")
    effective = method.op(weight, threshold, NO_MASK, probability, *constants)
    upstream = torch.randn(SHAPES[kind].shape).to(dtype)
    effective.backward(upstream)
    assert weight.grad is not None
    assert probability.grad is not None
    assert effective.dtype == weight.grad.dtype == dtype
    rtol = max(torch.finfo(dtype).eps, 5e-5)
    for place in range(weight.numel()):
        w, s, g = (t.detach().double().view(-1)[place].item() for t in
                   (weight, probability, upstream))  # fmt: skip
        near = min(max(s, 1e-6), 1 - 1e-6)
        soft, there = (
            1 / (1 + math.exp(-(math.log(p / (1 - p)) + noise_at(place, salt, 7)) / 0.4))
            if 0 < p < 1
            else p
            for p in (s, near)
        )
        mask = float(soft >= 0.5) if hard else soft
        slope = there * (1 - there) / (0.4 * near * (1 - near))
        own = effective.detach().double().view(-1)[place].item()
        assert own == pytest.approx(w * mask, rel=rtol, abs=1e-6)
        found = weight.grad.double().view(-1)[place].item()
        assert found == pytest.approx(g * mask, rel=rtol, abs=1e-6)
        found = probability.grad.double().view(-1)[place].item()
        # Near 0 and 1 single precision has few digits of 1 - s.
        assert found == pytest.approx(g * w * slope, rel=max(rtol, 0.1 if s in (0, 1) else 2e-3),
                                      abs=1e-5)  # fmt: skip
    assert not effective[probability == 0].any()
    assert not torch.signbit(effective[effective == 0]).any()


@shapes
def test_probmask_decides_by_the_threshold(kind: str) -> None:
    method = create("probmask")
    weight, probability, threshold = probmask_inputs(kind, torch.float32)
    left = probability > 0.5
    constants = method.constants(site(kind))
    effective = method.op(weight, decided(threshold), NO_MASK, probability, *constants)
    assert torch.equal(effective, torch.where(left, weight, 0.0))
    effective.sum().backward()
    assert weight.grad is not None
    assert probability.grad is not None
    assert torch.equal(weight.grad, left.float())
    assert not probability.grad.any()


@pytest.mark.parametrize("hard", [False, True])
def test_probmask_draws_groups_together(hard: bool) -> None:
    place = site("conv")
    method = create("probmask", granularity="channels", hard=hard)
    weight = torch.randn(8, 3, 3, 3, requires_grad=True)
    probability = torch.rand(8, 1, 1, 1).expand(8, 3, 3, 3).clone().requires_grad_()
    threshold = with_draw(torch.tensor(0.5), 2, 0.5)
    effective = method.op(weight, threshold, NO_MASK, probability, *method.arguments(place))
    ratio = (effective / weight).detach().flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-5, atol=1e-6)
    assert len(ratio[:, 0].unique()) > 1
    effective.sum().backward()
    assert probability.grad is not None
    own = probability.grad.flatten(1)
    torch.testing.assert_close(own, own[:, :1].expand_as(own))
    assert own.any()


def test_probmask_draws_as_often_as_the_probability_says() -> None:
    method = create("probmask", hard=True)
    weight, mask = torch.ones(10, 3300), NO_MASK
    probability = torch.linspace(0, 1, 11)[:10, None].expand(10, 3300).contiguous()
    place = Site("w", ("w",), (10, 3300), "any", Layout((0,)), ("",))
    shares = []
    for number in (1, 2):
        threshold = with_draw(torch.tensor(0.5), number, 0.1)
        effective = method.op(weight, threshold, mask, probability, *method.constants(place))
        shares.append(effective)
        torch.testing.assert_close(effective.mean(1), probability[:, 0], rtol=0, atol=0.04)
    both = (shares[0] * shares[1]).mean(1)  # draws are independent
    torch.testing.assert_close(both, probability[:, 0] ** 2, rtol=0, atol=0.04)
