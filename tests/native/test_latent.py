"""The training step's kernels: against NumPy and torch, and the same bits on every CPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from st3fx import native
from st3fx.methods.st3 import FORMULA, formula
from st3fx.native import latent
from st3fx.plan.sites import Layout
from st3fx.sparsity.digest import digests
from st3fx.sparsity.formula import Inputs, Job, evaluate, smallest_threshold
from st3fx.sparsity.threshold.scan import Source, count
from st3fx.sparsity.threshold.search import GlobalThreshold

SIZES = [1, 31, 63, 64, 65, 300, 16_383, 16_384, 16_385, 50_000]


@pytest.fixture(params=native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using_isa(request.param):
        yield request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.randn(size, generator=generator) for size in sizes]


def by_numpy(weight: Tensor, scale: float, low: float, high: float) -> tuple[int, int, list[float]]:
    scores = np.abs(weight.numpy()) / np.float32(scale)
    band = scores[(scores >= np.float32(low)) & (scores <= np.float32(high))]
    return int((scores < np.float32(low)).sum()), len(band), sorted(band.tolist())


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("band", [(0.5, 0.7), (0.0, 0.01), (0.9, 0.9), (0.0, 3e38), (7.0, 9.0)])
def test_counts(isa: str, scale: float, band: tuple[float, float], two_threads: None) -> None:
    low, high = (float(np.float32(end)) for end in band)
    tensors = weights(*SIZES)
    tensors[5][:3] = torch.tensor([low * scale, -high * scale, 0.0])
    scored = [latent.Scored(w.data_ptr(), len(w), scale) for w in tensors]
    tallies, scores, owners = latent.count(scored, low, high, 1_000_000)
    for site, weight in enumerate(tensors):
        below, inside, values = by_numpy(weight, scale, low, high)
        assert (tallies[site]["below"], tallies[site]["inside"]) == (below, inside)
        assert sorted(scores[owners == site].tolist()) == values
        assert tallies[site]["largest"] == np.abs(weight.numpy() / np.float32(scale)).max()


def test_what_is_not_finite(isa: str) -> None:
    tensors = weights(70, 70, 70)
    tensors[0][69], tensors[1][3], tensors[1][4] = torch.nan, -torch.inf, torch.inf
    tensors[2][0] = -torch.nan
    scored = [latent.Scored(w.data_ptr(), len(w), 1.0) for w in tensors]
    tallies, _, _ = latent.count(scored, 0.5, float("inf"), 1000)
    assert np.isnan(tallies["largest"]).tolist() == [True, False, True]
    assert tallies["largest"][1] == np.inf
    assert tallies["below"][1] + tallies["inside"][1] == 70
    assert tallies["below"][0] + tallies["inside"][0] == 69


def test_more_than_there_is_room_for(isa: str) -> None:
    (weight,) = weights(100_000)
    tallies, scores, owners = latent.count(
        [latent.Scored(weight.data_ptr(), len(weight), 1.0)], 0.0, 9.0, 10
    )
    assert tallies[0]["inside"] == 100_000
    assert len(scores) == len(owners) == 0


def test_torch_counts_the_same() -> None:
    tensors = weights(*SIZES)
    sources = [Source(w, 0.7) for w in tensors]
    others = [Source(w.double(), 0.7) for w in tensors]  # the library has fp32 alone
    for low, high in ((0.5, 0.75), (1.0, 1.0), (2.0, 5.0)):
        one, other = count(sources, low, high, 10**6), count(others, low, high, 10**6)
        assert one.below.tolist() == other.below.tolist()
        assert one.inside.tolist() == other.inside.tolist()
        assert one.largest.tolist() == other.largest.tolist()


CHANNELS = [(8, 3, 3, 3), (5, 64), (3, 65), (2, 17_000), (1, 7), (40_000, 1), (70, 25, 3, 3)]


def evaluated(tensors: list[Tensor], threshold: float, *, rescale: bool) -> list[Tensor]:
    outs = [torch.empty_like(w) for w in tensors]
    args = (torch.tensor(threshold), torch.empty(0), ([0], 1, rescale))
    evaluate([Job(Inputs(FORMULA, w, *args), o) for w, o in zip(tensors, outs, strict=True)])
    return outs


@pytest.mark.slow
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 2.0, 9.0])
def test_effective_weights(isa: str, threshold: float, rescale: bool, two_threads: None) -> None:
    tensors = [
        w.reshape(s) for s, w in zip(CHANNELS, weights(*map(math.prod, CHANNELS)), strict=True)
    ]
    tensors += [torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)]
    tensors[0][0, 0, 0, :2] = torch.tensor([threshold, -threshold])
    for weight, out in zip(tensors, evaluated(tensors, threshold, rescale=rescale), strict=True):
        expected = torch.empty_like(weight)
        level = torch.tensor(threshold)
        formula(weight, level, smallest_threshold(torch.float32), expected, [0], 1, rescale)
        torch.testing.assert_close(out, expected, rtol=2e-6, atol=1e-7)
        assert torch.equal(out == 0, expected == 0)
        assert not torch.signbit(out[out == 0]).any()


def test_an_inactive_threshold_changes_nothing(isa: str) -> None:
    (weight,) = weights(300)
    (out,) = evaluated([weight.reshape(3, 100)], -1.0, rescale=True)
    assert torch.equal(out.flatten(), weight)


def test_nan_stays(isa: str) -> None:
    weight = torch.randn(2, 5)
    weight[0, 1] = torch.nan
    (out,) = evaluated([weight], 0.1, rescale=True)
    assert out[0].isnan().any()
    assert not out[1].isnan().any()


def test_every_cpu_gives_the_same_bits() -> None:
    tensors = [w.reshape(-1, 250) for w in weights(100_000, 1000)]
    found = []
    for name in native.available_isas():
        with native.using_isa(name):
            outs = evaluated(tensors, 0.5, rescale=True)
            found.append((outs[0].numpy().tobytes(), outs[1].numpy().tobytes(), digests(tensors)))
    assert len(found) >= 2
    assert all(each == found[0] for each in found)


CHANGES = {
    "one bit": lambda w: w.view(torch.int32).flatten()[777].bitwise_xor_(1),
    "one sign": lambda w: w.flatten()[5].neg_(),
    "all signs": lambda w: w.neg_(),
    "two signs": lambda w: w.flatten()[:1025:1024].neg_(),
    "doubled": lambda w: w.mul_(2),
    "rolled": lambda w: w.copy_(w.roll(1, 0)),
    "two swapped": lambda w: w.copy_(w[[1, 0, *range(2, len(w))]]),
    "the last": lambda w: w.flatten()[-1].add_(1),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("with_library", [True, False])
def test_digests(change: str, with_library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_library:
        monkeypatch.setattr(latent, "available", lambda: False)
    tensors = [torch.randn(30, 700), torch.randn(5), torch.randn(3, 3)]
    before = digests(tensors)
    assert digests([t.clone() for t in tensors]) == before
    CHANGES[change](tensors[0])
    after = digests(tensors)
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_digests_of_any_tensor(isa: str) -> None:
    tensors = [
        torch.randn(3, 4).half(),
        torch.empty(0, 3),
        torch.tensor(2.0),
        torch.randn(4, 4).t(),
    ]
    tensors += [
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(9, 8)[:, :3],
    ]
    assert digests(tensors) == [digests([t])[0] for t in tensors]
    assert digests([torch.empty(2, device="meta")]) == [()]


@pytest.mark.slow
def test_without_the_library_a_training_step_works() -> None:
    """As where st3fx was installed without a compiler."""
    code = (
        "import torch, st3fx\n"
        "from st3fx.native import latent\n"
        "available = latent.available()\n"
        "torch.manual_seed(0)\n"
        "m, s = st3fx.convert(torch.nn.Linear(50, 40), torch.randn(2, 50), total_steps=4)\n"
        "o = torch.optim.SGD(m.parameters(), 0.1)\n"
        "for _ in range(4):\n"
        "    m(torch.ones(2, 50)).sum().backward(); o.step(); o.zero_grad(); s.step()\n"
        "found = f'{s.thresholds} {s.sparsity}'\n"
    )
    here: dict[str, Any] = {}
    exec(code, here)
    assert here["available"]
    hide = (
        "from pathlib import Path; import st3fx.native as n\n"
        "n.library_path = lambda: Path('/nonexistent/library.so')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}{code}assert not available\nprint(found)"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == here["found"]


def test_the_search_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = weights(*SIZES)
    with_library = GlobalThreshold().find(tensors, [1.0] * len(tensors), 0.9)
    monkeypatch.setattr(latent, "available", lambda: False)
    assert torch.equal(GlobalThreshold().find(tensors, [1.0] * len(tensors), 0.9), with_library)


def test_layouts_that_the_kernels_do_not_have() -> None:
    weight, threshold, mask = torch.randn(4, 6), torch.tensor(0.5), torch.empty(0)
    for layout in (Layout((1,)), Layout(()), Layout((0, 2), 2)):
        tensor = torch.randn(4, 3, 2) if layout.groups > 1 else weight
        out, expected = torch.empty_like(tensor), torch.empty_like(tensor)
        constants = (list(layout.channel_dims), layout.groups, True)
        evaluate([Job(Inputs(FORMULA, tensor, threshold, mask, constants), out)])
        formula(tensor, threshold, smallest_threshold(torch.float32), expected, *constants)
        assert torch.equal(out, expected)
