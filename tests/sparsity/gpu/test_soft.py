"""ST-3's kernel against its formula, and together against one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from st3fx.methods.st3 import FORMULA, effective_weight
from st3fx.plan.sites import Layout
from st3fx.sparsity import gpu
from st3fx.sparsity.formula import Inputs, Job, evaluate, smallest_threshold
from st3fx.sparsity.gpu.soft import Channels, soft_threshold

SMALLEST = smallest_threshold(torch.float32)


def weights() -> list[Tensor]:
    return [
        torch.randn(8, 3, 3, 3),
        torch.randn(5, 2100),  # longer than a block
        torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(1, 7),
    ]


THRESHOLDS = [torch.tensor(value) for value in (0.5, -1.0, 1.0, 9.0)]


@pytest.mark.parametrize("rescale", [True, False])
def test_it_follows_the_formula(rescale: bool) -> None:
    tensors = weights()
    outs = [torch.empty_like(weight) for weight in tensors]
    soft_threshold(
        [Channels(w, t, o, rescale) for w, t, o in zip(tensors, THRESHOLDS, outs, strict=True)],
        SMALLEST,
    )
    for weight, threshold, out in zip(tensors, THRESHOLDS, outs, strict=True):
        expected = effective_weight(weight, threshold, Layout((0,)), rescale)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)
        assert torch.equal(out == 0, expected == 0)
        assert not torch.signbit(out[out == 0]).any()
    assert torch.equal(outs[1], tensors[1])  # inactive


def test_one_launch_and_several_give_the_same_bits() -> None:
    tensors = weights()
    together, alone = ([torch.empty_like(weight) for weight in tensors] for _ in range(2))
    jobs = [Channels(*job, True) for job in zip(tensors, THRESHOLDS, together, strict=True)]
    soft_threshold(jobs, SMALLEST)
    for job, out in zip(jobs, alone, strict=True):
        soft_threshold([job._replace(out=out)], SMALLEST)
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_sites_that_it_cannot_do_are_done_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda device: True)
    mask = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    mask[0] = False
    inputs = [
        Inputs(FORMULA, torch.randn(8, 3, 3, 3), torch.tensor(0.5), mask, ([0], 1, True)),
        Inputs(FORMULA, torch.randn(4, 6), torch.tensor(0.5), torch.empty(0), ([1], 1, True)),
    ]
    outs = [torch.empty_like(item.weight) for item in inputs]
    evaluate([Job(*job) for job in zip(inputs, outs, strict=True)])
    for item, out, layout in zip(inputs, outs, (Layout((0,)), Layout((1,))), strict=True):
        expected = effective_weight(item.weight, item.threshold, layout, rescale=True)
        if item.mask.numel():
            expected = expected.masked_fill(~item.mask, 0.0)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)


def test_no_kernel_off_the_gpu() -> None:
    assert not gpu.available(torch.device("cpu"))
