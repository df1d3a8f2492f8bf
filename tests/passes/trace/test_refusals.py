"""What a graph would lose silently is not captured, and computes what the original computes.

``check`` converts without our own verification: the trace itself has to fail closed.
"""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import st3fx
from tests.parity import Checked, check

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)


class Inference(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode():
            scale = x.abs().mean()
        return self.out(self.fc(x) * scale.item())


class NoiseOfKnownShape(Two):
    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x) + torch.randn(6))


class PythonRandom(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return self.out(y if self.training and random.random() < 0.5 else -y)


class NumpyRandom(Two):
    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x) * float(np.random.rand()))


class DrawnConstant(Two):
    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x) * torch.rand(()).item())


class Counter(Two):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.count: Tensor
        self.count += 1
        return self.out(self.fc(x) * self.count)


class ReboundBuffer(Counter):
    def forward(self, x: Tensor) -> Any:
        self.count = self.count * 0.5 + 1
        return self.out(self.fc(x) * self.count)


class Remembers(Two):
    last: Any = None

    def forward(self, x: Tensor) -> Any:
        self.last = self.fc(x)
        return self.out(self.last)


class Logs(Two):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        self.log.append(y.detach())
        return self.out(y)


class CountsCalls(Two):
    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.out(self.fc(x)) * self.calls


class Checkpointed(Two):
    reentrant = False

    def forward(self, x: Tensor) -> Any:
        return self.out(checkpoint(self.fc, x * 2, use_reentrant=self.reentrant))


class CheckpointedReentrant(Checkpointed):
    reentrant = True

    def forward(self, x: Tensor) -> Any:
        y = x if x.requires_grad else x.clone().requires_grad_()
        return self.out(checkpoint(self.fc, y, use_reentrant=True))


class Branches(Two):
    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return self.out(y) if y.sum() > 0 else self.out(-y)


class Loops(Two):
    def forward(self, x: Tensor) -> Any:
        return torch.stack([self.out(self.fc(row)) for row in x])


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class Custom(Two):
    def forward(self, x: Tensor) -> Any:
        return self.out(Twice.apply(self.fc(x)))


class SavedOnCpu(Two):
    def forward(self, x: Tensor) -> Any:
        with torch.autograd.graph.save_on_cpu():
            return self.out(self.fc(x))


class FreshConstant(Two):
    def forward(self, x: Tensor) -> Any:
        return self.out(self.fc(x) + torch.arange(6) * torch.ones(6))


REFUSED = [
    Inference, PythonRandom, NumpyRandom, Counter, ReboundBuffer, Logs,
    CountsCalls, Checkpointed, CheckpointedReentrant, Branches, SavedOnCpu,
]  # fmt: skip


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
@pytest.mark.parametrize("verify", [False, True])
def test_a_forward_that_a_graph_would_change_keeps_running(
    model: type[nn.Module], verify: bool
) -> None:
    checked = check(model(), X, verify=verify)
    assert "" not in checked.islands
    assert checked.opaque[""]
    assert checked.sites == ["fc.weight", "out.weight"]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "model", [NoiseOfKnownShape, DrawnConstant, Loops, FreshConstant, Remembers]
)
def test_what_a_graph_does_anew_at_each_call_is_captured(
    model: type[nn.Module], verify: bool
) -> None:
    """Numbers that torch draws, tensors made of numbers, a loop over rows, what is kept."""
    assert "" in check(model(), X, verify=verify).islands


@pytest.mark.parametrize("model", [Custom])
def test_either_way_is_right_as_long_as_it_computes_the_same(model: type[nn.Module]) -> None:
    assert check(model(), X).sites == ["fc.weight", "out.weight"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Inference, "enters inference_mode"),
        (PythonRandom, "draws random numbers"),
        (Logs, "stores log"),
        (Branches, "branches on a tensor"),
    ],
)
def test_the_reason_is_told(model: type[nn.Module], reason: str) -> None:
    assert reason in check(model(), X).opaque[""]


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda x: np.asarray(x).mean(), "gives a tensor to code that needs its values"),
        (lambda x: f"{x.mean():.3f}", "gives a tensor to code that needs its values"),
        (lambda x: x * np.float32(2), "computes with a numpy.float32, which no graph holds"),
        (
            lambda x: dict[int, int]()[0] if x is not X else 0,
            "raises KeyError (0) when run without the values",
        ),
    ],
)
def test_errors_of_python_are_told_as_what_the_forward_did(use: Any, reason: str) -> None:
    class Uses(Two):
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                use(x.detach() if "raises" not in reason else x)
            return self.out(self.fc(x))

    plan = st3fx.convert(Uses(), X, verify=False)[1].plan
    assert plan.opaque[0].reason.startswith(reason)
    assert re.search(r" at test_refusals.py:\d+$", plan.opaque[0].reason)


def test_the_reason_names_the_line() -> None:
    assert "test_refusals.py:" in check(Branches(), X).opaque[""]


def inside(model: type[nn.Module]) -> Checked:
    """The same forward as one layer of a larger model."""
    return check(nn.Sequential(nn.Linear(6, 6), model(), nn.Linear(4, 3)), X)


@pytest.mark.parametrize("model", [Inference, Counter, Logs, Branches])
def test_inside_a_model_it_is_left_out_too(model: type[nn.Module]) -> None:
    checked = inside(model)
    assert "1" not in checked.islands
    assert checked.opaque.get("1", checked.opaque.get(""))
    assert checked.sites == ["0.weight", "1.fc.weight", "1.out.weight", "2.weight"]


@pytest.mark.parametrize("model", [Inference, Branches])
def test_the_model_around_it_stays_one_graph(model: type[nn.Module]) -> None:
    checked = inside(model)
    assert checked.islands[""] == ("both",)
    assert "1" in checked.opaque


class LeavesProxies(Two):
    """Stores what it computes, then cannot be traced further."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Any] = {}
        self.history: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        self.last = self.fc(x)
        self.cache["last"] = self.last
        self.history.append(self.last)
        return self.out(self.last if self.last.sum() > 0 else -self.last)


@pytest.mark.parametrize("verify", [False, True])
def test_a_failed_trace_leaves_no_proxies_behind(verify: bool) -> None:
    original = nn.Sequential(LeavesProxies(), nn.Linear(4, 2))
    converted, sparsifier = st3fx.convert(original, X, verify=verify)
    for module in (original[0], converted.get_submodule("0")):
        assert "last" not in module.__dict__
        assert module.__dict__["cache"] == {}
        assert module.__dict__["history"] == []
    assert len(sparsifier.plan.sites) == 3
    assert sparsifier.plan.islands[0].name == ""  # the model around it is a graph
    assert torch.equal(converted(X), original(X))
