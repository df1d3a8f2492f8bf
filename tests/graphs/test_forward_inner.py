"""Layers whose weights a module above them multiplies with, called by themselves."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from tests.parity import check, require_same

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))


class Both(nn.Module):
    """Calls one layer and reads its weight as well, and only reads another's."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Linear(8, 8)
        self.read = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        y = F.linear(self.called(x), self.called.weight)
        return F.linear(y, self.read.weight, self.read.bias)


class Untraceable(Both):
    """The same in a forward that stays as it is."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y if y.sum() < 1e9 else -y


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)


MODELS: dict[str, tuple[Any, list[str]]] = {
    "a graph": (Both, ["called", "read"]),
    "no graph": (Untraceable, ["called", "read"]),
    "an encoder layer": (encoder_layer, ["linear1", "self_attn.out_proj"]),
}
models = pytest.mark.parametrize(("make", "layers"), MODELS.values(), ids=MODELS)


def sparse(make: Any) -> tuple[nn.Module, st3fx.Sparsifier]:
    model, sparsifier = st3fx.convert(make(), X)
    sparsifier.set_sparsity(0.6)
    return model, sparsifier


def require_effective(model: nn.Module, sparsifier: st3fx.Sparsifier, layers: list[str]) -> None:
    weights = sparsifier.effective_weights()
    for name in layers:
        layer: Any = model.get_submodule(name)
        weight = weights[f"{name}.weight"]
        assert torch.equal(weight, layer.weight)
        assert not torch.equal(weight, layer.get_parameter("weight"))
        for enabled in (True, False):
            with torch.set_grad_enabled(enabled):
                assert torch.equal(layer(X), F.linear(X, weight, layer.bias)), name
        assert isinstance(layer.get_parameter("weight"), nn.Parameter)


@models
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_below_a_holder_is_sparse_by_itself(
    make: Any, layers: list[str], training: bool
) -> None:
    model, sparsifier = sparse(make)
    model.train(training)
    require_effective(model, sparsifier, layers)
    model(X)
    require_effective(model, sparsifier, layers)


@models
def test_copies_too(make: Any, layers: list[str]) -> None:
    model, sparsifier = sparse(make)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        driver = st3fx.Sparsifier(other)
        driver.set_sparsity(0.8)
        require_effective(other, driver, layers)
    require_effective(model, sparsifier, layers)
    alone = copy.deepcopy(model.get_submodule(layers[0]))
    assert torch.equal(alone(X), model.get_submodule(layers[0])(X))
    assert len(pickle.dumps(alone)) < len(pickle.dumps(model)) / 1.5


@models
def test_within_its_holder_it_is_pruned_once(make: Any, layers: list[str]) -> None:
    check(make(), X)
    check(make(), X, verify=True)
    model, _ = sparse(make)
    calls: list[Tensor] = []
    hook = model.get_submodule(layers[0]).register_forward_hook(lambda *a: calls.append(a[2]))
    expected = st3fx.fold(copy.deepcopy(model)).train()
    torch.manual_seed(0)
    hooked = model.train()(X)
    torch.manual_seed(0)
    require_same(expected(X), hooked, "with a hook")
    hook.remove()
    assert calls


@models
def test_after_an_error_nothing_is_taken_for_swapped(make: Any, layers: list[str]) -> None:
    model, sparsifier = sparse(make)
    with pytest.raises((RuntimeError, AssertionError)):
        model(torch.randn(2, 5, 9))
    require_effective(model, sparsifier, layers)


@models
def test_it_learns(make: Any, layers: list[str]) -> None:
    model, _ = sparse(make)
    layer = model.get_submodule(layers[0])
    layer(X).square().sum().backward()
    gradient = layer.get_parameter("weight").grad
    assert gradient is not None
    assert gradient.count_nonzero() == gradient.numel()


@models
def test_nothing_is_left_after_fold(make: Any, layers: list[str]) -> None:
    model, sparsifier = sparse(make)
    weights = sparsifier.effective_weights()
    folded = st3fx.fold(model)
    for name in layers:
        layer: Any = folded.get_submodule(name)
        assert "forward" not in layer.__dict__
        assert torch.equal(layer(X), F.linear(X, weights[f"{name}.weight"], layer.bias))


# The third branches on data, which is no single graph before the conversion either.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["a graph", "an encoder layer"])
def test_compiled_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    make, layers = MODELS[name]
    model, sparsifier = sparse(make)
    model.eval()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X))
    require_effective(model, sparsifier, layers)
