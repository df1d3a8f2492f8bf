"""What a forward leaves in attributes: captured as of its second call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


class Anchors(nn.Module):
    """Keeps the anchors of the last size, in eval mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.stride = torch.tensor([2.0, 4.0])
        self.shape: Any = None
        self.anchors = torch.empty(0)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        if self.training:
            return y
        if self.shape != x.shape:
            self.anchors = torch.arange(x.shape[1]).float()[:, None] * self.stride[1]
            self.shape = x.shape
        return y * self.anchors


class Window(nn.Module):
    """Stores a window that fits the input, and reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.window = 9

    def forward(self, x: Tensor) -> Any:
        self.window = min(x.shape[1], self.window)
        return self.fc(x).unfold(1, self.window, 1).sum(-1)


class Multiplies(nn.Module):
    """Sets a number at its begin and changes it while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.factor = 0

    def forward(self, x: Tensor) -> Any:
        self.factor = 1
        for fc in self.fcs:
            x = fc(x) * self.factor
            self.factor *= 2
        return x


class ByDevice(nn.Module):
    """Keeps a table for each device in eval mode, as attention with relative positions does."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.bias = nn.Parameter(torch.arange(4.0))
        self.register_buffer("places", torch.tensor([0, 1, 2, 3, 2, 1]))
        self.tables: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        if self.training:
            return self.fc(x) * self.bias[self.places]
        key = str(x.device)
        if key not in self.tables:
            self.tables[key] = self.bias[self.places]
        return self.fc(x) * self.tables[key]


class Resizes(nn.Module):
    """Replaces a buffer by one that fits the input."""

    ramp: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("ramp", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        if self.ramp.shape[0] != x.shape[1]:
            self.ramp = torch.arange(x.shape[1]).float()
        return self.fc(x) * self.ramp[:, None]


class Counts(nn.Module):
    """Is in another state after every call."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.fc(x) * self.calls


def applies(model: nn.Module, x: Tensor) -> bool:
    variants = model.__dict__["st3fx_forward"].variants
    return any(variant.tensors((x,), {}) is not None for variant in variants)


@pytest.mark.parametrize("kind", [Anchors, Window, Multiplies, ByDevice, Resizes])
def test_the_second_call_runs_the_graph(kind: type[nn.Module]) -> None:
    original = kind()
    checked = check(original, X, verify=True)
    assert list(checked.islands) == [""]
    original.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    model = checked.model
    for each in (original, model):
        first = kind().eval()
        for name, value in (vars(first) | first._buffers).items():
            if not name.startswith("_"):
                setattr(each, name, value)
    used = []
    for x in (X, X, X[:, :3], X[:, :3], X[:2], X[:2], X, X):
        used.append(applies(model, x))
        assert torch.equal(model(x), original(x))
    assert used[:2] == [False, True]


def test_what_is_another_state_after_each_call_is_not_captured() -> None:
    original = Counts()
    model, sparsifier = st3fx.convert(original, X)
    assert "stores " in sparsifier.plan.opaque[0].reason
    for _ in range(3):
        assert torch.equal(model(X), original(X))


def test_the_given_model_is_in_its_first_state() -> None:
    original: Any = Anchors()
    model: Any = st3fx.convert(original, X)[0]
    for kept in (original, model):
        assert kept.shape is None
        assert kept.anchors.numel() == 0


def test_a_tensor_in_an_attribute_is_read_at_each_call() -> None:
    converted, _ = st3fx.convert(Anchors(), X)
    model: Any = converted.eval()
    before = model(X)
    assert applies(model, X)
    model.anchors = model.anchors * 2
    assert applies(model, X)
    assert torch.equal(model(X), before * 2)
    model.anchors = model.anchors.double()
    assert not applies(model, X)
    model.anchors = None
    assert not applies(model, X)


def test_graphs_are_verified_as_of_the_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first call they do not run, and nothing wrong in them would be seen."""
    from st3fx.passes.convert import islands
    from st3fx.passes.trace import capture

    def spoiled(*args: Any, **options: Any) -> Any:
        found = capture(*args, **options)
        output = next(node for node in found.graph.nodes if node.op == "output")
        with found.graph.inserting_before(output):
            output.args = (found.graph.call_function(torch.mul, (output.args[0], 2.0)),)
        return found

    monkeypatch.setattr(islands, "capture", spoiled)
    _, sparsifier = st3fx.convert(Window(), X)
    assert "did not compute" in sparsifier.plan.opaque[0].reason


class Installs(nn.Module):
    """Puts a hook on a part of itself in its first call, and a flag that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 4)
        self.installed = False
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Any:
        if not self.installed:
            self.fc.register_forward_hook(lambda *args: self.seen.append(args[-1]))
            self.installed = True
        self.seen.clear()
        return self.out(self.fc(x)) + self.seen[0].mean()


def test_a_part_of_a_state_is_none() -> None:
    """The flag without the hook would be a state in which the model never is."""
    original = Installs()
    model, sparsifier = st3fx.convert(original, X)
    assert sparsifier.plan.opaque[0].name == ""
    for _ in range(2):
        assert torch.equal(model(X), original(X))
