"""One trace: what it leaves behind, what it refuses, and ScriptModules."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import TraceError
from st3fx.graphs.calls import CallSpec
from st3fx.passes.trace import capture
from tests.parity import require_plain, require_same

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x).relu())


def captured(model: nn.Module, *args: Any) -> Any:
    return capture(
        "", model, CallSpec(model, args, {}), {name for name, _ in model.named_modules()}
    )


def test_a_trace_leaves_the_module_as_it_was() -> None:
    model = Two()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    capture = captured(model, X)
    assert list(capture.inlined) == ["", "fc", "out"]
    assert capture.leaves == {}
    for name, module in model.named_modules():
        assert module.__dict__ == before[name]
    assert "__getattribute__" not in nn.Module.__dict__


def test_a_failed_trace_takes_its_patches_off() -> None:
    class Fails(Two):
        def forward(self, x: Tensor) -> Any:
            raise ValueError("not today")

    with pytest.raises(TraceError, match=r"ValueError \(not today\) .* at test_one_module.py:\d+"):
        captured(Fails(), X)
    assert "__getattribute__" not in nn.Module.__dict__


def test_a_script_module_is_refused() -> None:
    with pytest.raises(TraceError, match="ScriptModule"):
        captured(scripted(), X)


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still in use
        return torch.jit.script(nn.Linear(6, 6))


def test_a_script_module_inside_is_skipped_with_its_reason() -> None:
    model = nn.Sequential(nn.Linear(6, 6), scripted(), nn.Linear(6, 3))
    converted, sparsifier = st3fx.convert(model, X)
    assert [site.name for site in sparsifier.plan.sites] == ["0.weight", "2.weight"]
    skipped = {site.name: site.reason for site in sparsifier.plan.skipped}
    assert skipped == {"1.weight": "inside a ScriptModule"}
    require_same(model(X), converted(X), "output")
    sparsifier.set_sparsity(0.5)
    folded = st3fx.fold(converted)
    require_same(converted(X), folded(X), "output after fold")
    require_plain(folded)
