"""What a graph's code found on classes and in globals is as it was, or the graph does not run."""

from __future__ import annotations

import copy
import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import st3fx

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
HERE = sys.modules[__name__]
GAIN = 1.0
SHIFTS = [0.0, 0.5]


class Config:
    """A class that is a place for settings."""

    power = 1.0


def gained(h: Tensor) -> Tensor:
    return h * GAIN * Config.power


class Parent(nn.Module):
    def tail(self, h: Tensor) -> Tensor:
        return h


class Net(Parent):
    scale = 1.0
    levels = [1.0, 2.0]  # noqa: RUF012 - shared on purpose
    act = staticmethod(torch.relu)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def helper(self, h: Tensor) -> Tensor:
        return h

    @classmethod
    def made(cls, h: Tensor) -> Tensor:
        return h * 1.5

    @property
    def bias(self) -> float:
        return 0.25

    def tail(self, h: Tensor) -> Tensor:
        return super().tail(h) + SHIFTS[1]

    def forward(self, x: Tensor) -> Any:
        h = self.helper(self.act(self.inner(x))) * self.scale * self.levels[1]
        return gained(self.tail(self.made(self.out(h)))) + self.bias


def tripled(self: Any, h: Tensor) -> Tensor:
    return h * 3


CHANGES: dict[str, tuple[Any, str, Any]] = {
    "a method": (Net, "helper", tripled),
    "a default": (Net, "scale", 3.0),
    "a list": (Net, "levels", [1.0, 5.0]),
    "a static method": (Net, "act", staticmethod(torch.tanh)),
    "a class method": (Net, "made", classmethod(tripled)),
    "a property": (Net, "bias", property(lambda self: 7.0)),
    "a method of a parent": (Parent, "tail", tripled),
    "the forward": (Net, "forward", lambda self, x: self.out(self.inner(x))),
    "a layer's forward": (nn.Linear, "forward", lambda self, x: x @ self.weight.t() + 1),
    "a global": (HERE, "GAIN", 3.0),
    "a global list": (HERE, "SHIFTS", [0.0, 9.0]),
    "a global function": (HERE, "gained", torch.sigmoid),
    "a setting of a class": (Config, "power", 4.0),
}


def sparse(model: nn.Module | None = None) -> tuple[Any, Any]:
    model, sparsifier = st3fx.convert(model or Net(), X, total_steps=9)
    sparsifier.set_sparsity(0.5)
    assert sparsifier.plan.islands[0].name == ""
    return model, st3fx.fold(model)


def runs_graph(model: Any) -> bool:
    forward = model.__dict__["st3fx_forward"]
    return any(variant.tensors((X,), {}) is not None for variant in forward.variants)


@pytest.mark.parametrize(("owner", "name", "value"), CHANGES.values(), ids=CHANGES)
def test_what_a_class_or_a_file_defines_anew_counts(
    owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folded = sparse()
    before = folded(X)
    assert runs_graph(model)
    assert torch.equal(model(X), before)
    monkeypatch.setattr(owner, name, value)
    assert not runs_graph(model)
    assert not torch.equal(folded(X), before)
    assert torch.equal(model(X), folded(X))
    monkeypatch.undo()
    assert runs_graph(model)


@pytest.mark.parametrize(
    ("name", "value"), [("scale", 3.0), ("act", torch.tanh), ("helper", lambda h: h * 5)]
)
def test_an_attribute_of_the_instance_hides_that_of_the_class(name: str, value: Any) -> None:
    model, folded = sparse()
    for net in (model, folded):
        setattr(net, name, value)
    assert torch.equal(model(X), folded(X))
    delattr(model, name)
    assert runs_graph(model)


def test_what_is_in_a_list_of_a_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "levels", [*Net.levels])
    model, folded = sparse()
    Net.levels[1] = 4.0
    assert torch.equal(model(X), folded(X))
    assert not runs_graph(model)


def test_copies_and_files_keep_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = sparse()
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    twins = [copy.deepcopy(model), torch.load(memory, weights_only=False)]
    assert all(map(runs_graph, twins))
    monkeypatch.setattr(Net, "scale", 3.0)
    assert not any(map(runs_graph, twins))


def test_a_compiled_model_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, folded = sparse()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    compiled(X)
    monkeypatch.setattr(Net, "helper", tripled)
    torch.testing.assert_close(compiled(X), folded(X))


def edit(graph_module: Any) -> None:
    node = next(n for n in graph_module.graph.nodes if n.target == "relu")
    with graph_module.graph.inserting_after(node):
        scaled = graph_module.graph.call_function(torch.mul, (node, 5.0))
    node.replace_all_uses_with(scaled)
    scaled.args = (node, 5.0)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.inner(x).relu())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("assigned", [False, True])
def test_a_graph_module_that_is_edited_runs_its_new_code(inside: bool, assigned: bool) -> None:
    traced = fx.symbolic_trace(Plain())
    model, folded = sparse(nn.Sequential(traced) if inside else traced)
    assert runs_graph(copy.deepcopy(model))
    before = folded(X)
    for net in (model, folded):
        target = net[0] if inside else net
        edit(target)
        if assigned:
            target.graph = copy.deepcopy(target.graph)
        else:
            target.recompile()
    assert not torch.equal(folded(X), before)
    assert torch.equal(model(X), folded(X))
    assert torch.equal(st3fx.fold(model)(X), folded(X))
