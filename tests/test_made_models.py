"""Random models: converted, called by every method, averaged, trained, folded, counted, exported.

The oracle is a dense copy that holds the effective weights. ``ST3FX_MADE_MODELS`` takes more than
the usual number, ``ST3FX_MADE_FROM`` another first seed; every
``ST3FX_MADE_EXPORT_EVERY``-th model is also exported, which takes seconds.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import St3fxError
from tests.made_models import CALLS, SHAPE, Made

COUNT = int(os.environ.get("ST3FX_MADE_MODELS", "300"))
FIRST = int(os.environ.get("ST3FX_MADE_FROM", "0"))
EXPORT_EVERY = int(os.environ.get("ST3FX_MADE_EXPORT_EVERY", "20"))
BATCHES = 20
"""Models are tried in so many tests, which the workers share."""

pytestmark = pytest.mark.filterwarnings(
    "ignore::st3fx.errors.TargetWarning", "ignore::st3fx.errors.EmptyLayerWarning"
)


def close(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(left, right, strict=True)
    )


def has_computed(sparsifier: st3fx.Sparsifier) -> bool:
    return any(site.computed for site in sparsifier.plan.sites)


def require_every_call(model: Any, oracle: Any, x: Tensor, what: str) -> None:
    for training, gradients in ((True, True), (False, False)):
        with torch.set_grad_enabled(gradients):
            for name, call in CALLS.items():
                ours, theirs = (call_once(m.train(training), call, x) for m in (model, oracle))
                assert close(ours, theirs), f"{what}: {name}, {training=}, {gradients=}"


def call_once(model: nn.Module, call: Any, x: Tensor) -> list[Tensor]:
    """One call, whose changes of buffers are taken back."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    output: list[Tensor] = call(model, x)
    for buffer, value in before:
        buffer.data.copy_(value)
    return output


def require_gradients(model: Any, oracle: Any, x: Tensor, sites: set[str]) -> None:
    """Straight through: those of the effective weights, for all parameters."""
    for module in (model, oracle):
        module.train().zero_grad()
        (module(x).square().sum() + module.encode(x).sum()).backward()
    for name, parameter in oracle.named_parameters():
        own = model.get_parameter(name).grad
        if parameter.grad is None:
            assert own is None or not own.any(), name
        else:
            assert torch.allclose(own, parameter.grad, rtol=1e-3, atol=1e-4), name
    assert sites


def oracle_of(original: nn.Module, sparsifier: st3fx.Sparsifier) -> nn.Module:
    oracle = copy.deepcopy(original)
    missing = oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    assert not missing.unexpected_keys
    return oracle


def try_one(seed: int) -> str:
    """Everything with one model; ``refused`` if the conversion has said no in a line."""
    original = Made(seed)
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(seed))
    before = copy.deepcopy(original.state_dict())
    try:
        model, sparsifier = st3fx.convert(
            original, x, st3fx.ST3(0.5), total_steps=4, verify=seed % 5 == 0
        )
    except St3fxError:
        return "refused"
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    written = any(kind == "clamps" for kind in original.kinds)
    require_every_call(model, copy.deepcopy(original), x, "dense")
    if written:  # weights move with each call: the dense calls above are what can be compared
        return "written"
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(model)
    computed = has_computed(sparsifier)
    oracle = folded if computed else oracle_of(original, sparsifier)
    require_every_call(model, oracle, x, "sparse")
    require_every_call(folded, oracle, x, "folded")
    if not computed:
        require_gradients(model, oracle, x, {site.name for site in sparsifier.plan.sites})
        require_average(model, sparsifier)
    if seed % 4 == 0:
        counts = [st3fx.count_flops(m.eval(), x) for m in (folded, oracle)]
        assert counts[0].sparse_macs == counts[1].sparse_macs
        assert counts[0].dense_macs == counts[1].dense_macs >= counts[0].sparse_macs
    if (seed // BATCHES) % EXPORT_EVERY == 0:
        require_export(model, oracle, x, branches="branches" in original.kinds)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparsifier.set_sparsity(None)
    sparsifier.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    assert abs(sparsifier.sparsity - 0.5) < 0.02
    require_every_call(st3fx.fold(model), model, x, "trained")
    return "tried"


def require_average(model: nn.Module, sparsifier: st3fx.Sparsifier) -> None:
    average = copy.deepcopy(model).eval()
    for parameter in average.parameters():
        parameter.data.mul_(0.7).add_(0.05 * torch.randn_like(parameter))
    driver = st3fx.Sparsifier(average)
    assert abs(driver.sparsity - 0.5) < 0.02
    folded = st3fx.fold(average)
    zeros = sum(int((folded.get_parameter(s.name) == 0).sum()) for s in driver.plan.sites)
    assert abs(zeros / driver.plan.numel - 0.5) < 0.02
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.02)


def require_export(model: nn.Module, oracle: nn.Module, x: Tensor, *, branches: bool) -> None:
    """The file computes what the oracle does, at another batch too, and holds the zeros."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            result = st3fx.export_onnx(model.eval(), x, path)
        except St3fxError as error:
            if not branches or "branches on the values of a tensor" not in str(error):
                raise
            assert not path.exists()
            return
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert result.zeros.zeros >= 0.45 * result.zeros.elements > 0
    for batch in (x, x[:2]):
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, oracle.eval()(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(BATCHES))
def test_random_models(part: int) -> None:
    outcomes: dict[str, int] = {}
    for seed in range(FIRST + part, FIRST + COUNT, BATCHES):
        try:
            outcome = try_one(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {Made(seed).kinds}: {error}") from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.get("tried", 0) >= 0.4 * sum(outcomes.values()), outcomes
