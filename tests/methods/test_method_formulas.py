"""Each method's effective weight and gradients, against its paper's formula in double precision.

The formulas are written again here, one output channel at a time, from the docstrings alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from st3fx.methods import METHODS, Method, create
from st3fx.plan.sites import Layout, Site

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NO_MASK = torch.empty(0, dtype=torch.bool)
NAMES = ["st3", "dst", "str", "feather", "gmp"]


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
        if name == "gmp":
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
