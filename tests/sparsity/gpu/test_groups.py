"""Kernels of groups against torch's operators and the formula, in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from st3fx.methods.st3 import FORMULA, effective_weight
from st3fx.native import latent
from st3fx.plan.sites import Layout
from st3fx.sparsity import gpu
from st3fx.sparsity.formula import Inputs, Job, evaluate
from st3fx.sparsity.granularity import Grouping, magnitudes, scores

# The interpreter's NumPy speaks of what a GPU does in silence, where a sum leaves fp32.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")

ALL = tuple(range(1, 4))
GROUPINGS = {
    "block:4": Grouping((1,), 0, 4, 1),
    "block:3": Grouping((1,), 0, 3, 1),
    "nm:2:4": Grouping((1,), 2, 4, 1),
    "nm:5:7": Grouping((1,), 5, 7, 1),
    "channels": Grouping(ALL, 0, 0, 1),
}


def weights() -> list[Tensor]:
    """Rows that blocks do not divide, memory in both orders, equal weights, extreme ones, zeros."""
    torch.manual_seed(0)
    made = [torch.randn(4, 10, 3, 3), torch.randn(3, 40, 1, 1), torch.randn(5, 9, 1, 2)]
    made[0].view(-1)[::7] = 0.5
    made[0][2, :4] = 0
    made[2] *= torch.tensor([1e20, 1e-30, 1.0, 1e-19, 3.0]).view(5, 1, 1, 1)
    return [*made, made[0].to(memory_format=torch.channels_last)]


CASES = list(itertools.product(range(4), GROUPINGS))
SOFTENED = [(0, "block:4"), (2, "block:4"), (3, "block:3"), (0, "nm:2:4"), (1, "nm:5:7"),
            (2, "nm:2:4"), (2, "channels"), (3, "channels")]  # fmt: skip


@pytest.mark.parametrize(("index", "name"), CASES)
def test_magnitudes_have_the_bits_of_torch(
    index: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, grouping = weights()[index], GROUPINGS[name]
    monkeypatch.setattr(latent, "available", lambda: False)
    expected = magnitudes(weight, *grouping)
    values = [
        part.values.flatten().sort().values for part in scores(weight, weight.shape, grouping)
    ]
    monkeypatch.setattr(gpu, "available", lambda device: True)
    assert torch.equal(magnitudes(weight, *grouping), expected)
    found = scores(weight, weight.shape, grouping)
    assert [len(part.values.flatten()) for part in found] == [len(own) for own in values]
    for part, own in zip(found, values, strict=True):
        assert torch.equal(part.values.flatten().sort().values, own)


@pytest.mark.slow
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("level", [0.7, 1e-25, -1.0])
def test_effective_weights_follow_the_formula(
    level: float, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sites in as few launches as there are kinds of groups, single weights among them."""
    chosen = [(weights()[index], GROUPINGS[name]) for index, name in SOFTENED] + [
        (weights()[0], ())
    ]
    threshold = torch.tensor(level)
    monkeypatch.setattr(latent, "available", lambda: False)
    expected = [effective_weight(w, threshold, Layout((0,)), rescale, g) for w, g in chosen]
    monkeypatch.setattr(gpu, "available", lambda device: True)
    inputs = [
        Inputs(FORMULA, w, threshold, torch.empty(0), ([0], 1, rescale, *g)) for w, g in chosen
    ]
    outs = [torch.empty_like(w) for w, _ in chosen]
    evaluate([Job(*job) for job in zip(inputs, outs, strict=True)])
    for (weight, _), out, wanted in zip(chosen, outs, expected, strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-37)
        assert torch.equal(out == 0, wanted == 0)
        assert not torch.signbit(out[out == 0]).any() or level < 0
        assert level > 0 or torch.equal(out, weight)


@pytest.mark.slow
def test_one_launch_and_several_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda device: True)
    constants = ([0], 1, True, *GROUPINGS["nm:2:4"])
    inputs = [Inputs(FORMULA, w, torch.tensor(0.6), torch.empty(0), constants) for w in weights()]
    together, alone = ([torch.empty_like(w) for w in weights()] for _ in range(2))
    evaluate([Job(*job) for job in zip(inputs, together, strict=True)])
    for job in zip(inputs, alone, strict=True):
        evaluate([Job(*job)])
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_not_a_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda device: True)
    weight = torch.randn(2, 8)
    weight[0, 1] = torch.nan
    for name in ("block:4", "nm:2:4"):
        found = effective_weight(
            weight, torch.tensor(0.1), Layout((0,)), rescale=False, grouping=GROUPINGS[name]
        )
        assert found[0, 1].isnan()
        assert not found[1].isnan().any()
