"""The operator's mathematics: values, rescaling, dtypes, exact zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from st3fx.methods.st3 import effective_weight, rescale_factor
from st3fx.plan.sites import Layout
from st3fx.sparsity import formula
from st3fx.sparsity.formula import INACTIVE

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def plain_formula(channel: Tensor, threshold: float) -> Tensor:
    """``ŵ`` of one output channel as the paper writes it, in double."""
    w = channel.double()
    mask = (w.abs() > threshold).double()
    rho = ((w.abs() * mask).mean() + 1e-6) / (w.abs().mean() + 1e-6)
    return 1.01 / (rho + 0.01) * (w - w.sign() * threshold) * mask


def soft_threshold(w: Tensor, threshold: Tensor, layout: Layout, rescale: bool) -> Tensor:
    mask = torch.empty(0, dtype=torch.bool)
    op = torch.ops.st3fx.soft_threshold
    result: Tensor = op(w, threshold, mask, layout.channel_dims, layout.groups, rescale)
    return result


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((8, 3, 3, 3), (0,)),
        ((10, 40), (0,)),
        ((6, 5, 4), (0,)),
        ((40, 10), (1,)),
        ((3, 7, 5), (0, 2)),
    ],
)
def test_the_formula_per_output_channel(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    actual = effective_weight(w, torch.tensor(0.7), Layout(dims), rescale=True)
    front = list(range(len(dims)))
    channels = w.movedim(dims, front).flatten(0, len(dims) - 1)
    expected = torch.stack([plain_formula(channel, 0.7) for channel in channels])
    found = actual.movedim(dims, front).flatten(0, len(dims) - 1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_grouped_transposed_convolution_is_rescaled_per_output_channel() -> None:
    groups, inputs, outputs = 3, 2, 4  # the weight is (groups·inputs, outputs, 3, 3)
    w = torch.randn(groups * inputs, outputs, 3, 3)
    actual = effective_weight(w, torch.tensor(0.5), Layout((0, 2), groups), rescale=True)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        for channel in range(outputs):
            expected = plain_formula(w[rows, channel], 0.5).float()
            torch.testing.assert_close(actual[rows, channel], expected, rtol=1e-5, atol=1e-6)


def test_without_output_channels_the_whole_weight_is_one() -> None:
    w = torch.randn(5, 6)
    actual = effective_weight(w, torch.tensor(0.5), Layout(()), rescale=True)
    torch.testing.assert_close(actual, plain_formula(w, 0.5).float(), rtol=1e-5, atol=1e-6)


def test_without_rescaling_it_is_a_soft_threshold() -> None:
    w = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 0.75, 3.0]])
    actual = effective_weight(w, torch.tensor(0.5), Layout(), rescale=False)
    assert actual.tolist() == [[-1.5, 0.0, 0.0, 0.0, 0.25, 2.5]]


def test_a_channel_that_is_pruned_whole_gets_a_finite_factor() -> None:
    w = torch.tensor([[0.1, -0.2], [1.0, 2.0]])
    factor = rescale_factor(w, torch.tensor(0.5), (1,))
    rho = (0.0 + 1e-6) / (0.15 + 1e-6)
    assert factor[0].item() == pytest.approx(1.01 / (rho + 0.01), rel=1e-6)
    assert factor[1].item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inactive_gives_the_latent_weight(dtype: torch.dtype) -> None:
    w = torch.randn(4, 5).to(dtype)
    actual = effective_weight(w, torch.tensor(INACTIVE), Layout(), rescale=True)
    assert actual.dtype == dtype
    assert torch.equal(actual, w)
    assert actual.data_ptr() != w.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_dtypes_follow_the_formula(dtype: torch.dtype) -> None:
    w = torch.randn(6, 50).to(dtype)
    actual = effective_weight(w, torch.tensor(0.625), Layout(), rescale=True)
    expected = torch.stack([plain_formula(channel, 0.625) for channel in w])
    assert actual.dtype == dtype
    # Computed in fp32 at least and rounded once: half a unit in the last place of the result.
    precision = max(torch.finfo(dtype).eps / 2, 1e-6) if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(actual.double(), expected, rtol=precision * 1.01, atol=1e-6)
    assert torch.equal(actual == 0, w.double().abs() <= 0.625)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 10.0])
def test_zeros_are_positive(rescale: bool, threshold: float) -> None:
    w = torch.cat([torch.randn(3, 20), torch.zeros(3, 2), -torch.zeros(3, 2)], 1)
    actual = effective_weight(w, torch.tensor(threshold), Layout(), rescale)
    zeros = actual == 0
    assert zeros.sum() >= 12
    assert not torch.signbit(actual[zeros]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rescale", [True, False])
def test_no_effective_weight_is_denormal(dtype: torch.dtype, rescale: bool) -> None:
    info = torch.finfo(dtype)
    exponents = torch.linspace(0, 60, 4001, dtype=torch.float64)
    w = (info.tiny * torch.exp2(exponents)).to(dtype).reshape(1, -1)
    near = w.flatten()[::400].float()
    for threshold in torch.cat([near, near * (1 - 2**-23), near * (1 + 2**-23), torch.zeros(1)]):
        for sign in (1, -1):
            actual = effective_weight(sign * w, threshold, Layout(), rescale)
            denormal = (actual != 0) & (actual.abs() < info.tiny)
            assert not denormal.any(), f"threshold {threshold.item()}: {actual[denormal][:3]}"


def test_the_gradient_is_straight_through_for_pruned_weights_too() -> None:
    w = torch.randn(4, 6, requires_grad=True)
    effective = soft_threshold(w, torch.tensor(0.8), Layout(), rescale=True)
    assert (effective == 0).any()
    upstream = torch.randn(4, 6)
    effective.backward(upstream)
    assert w.grad is not None
    assert torch.equal(w.grad, upstream)


def test_the_threshold_and_the_weight_are_not_changed() -> None:
    w, threshold = torch.randn(4, 6), torch.tensor(0.8)
    before = w.clone()
    soft_threshold(w, threshold, Layout(), rescale=True)
    assert torch.equal(w, before)
    assert threshold.item() == pytest.approx(0.8)


def test_the_smallest_threshold_is_tiny_but_normal() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert formula.smallest_threshold(dtype) == 2 * 2.0**-126 / 2.0**-23


@pytest.mark.parametrize(
    ("weight", "layout", "expected"),
    [
        (torch.empty(4, 6), Layout((0,)), True),
        (torch.empty(4, 3, 2, 2).to(memory_format=torch.channels_last), Layout((0,)), True),
        (torch.empty(0, 6), Layout((0,)), False),
        (torch.empty(4, 6), Layout((1,)), False),
        (torch.empty(4, 6), Layout((0,), 2), False),
        (torch.empty(4, 6), Layout(()), False),
        (torch.empty(4, 6).t(), Layout((0,)), False),
        (torch.empty(8, 6)[:, :4], Layout((0,)), False),
        (torch.empty(8, 6)[::2], Layout((0,)), False),
        (torch.empty(8, 6)[:1, :4], Layout((0,)), True),
    ],
)
def test_dense_channels(weight: Tensor, layout: Layout, expected: bool) -> None:
    assert formula.has_dense_channels(weight, layout) is expected
