"""Shallow copies of a converted model: other tensors in modules that share all else."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import ForwardError
from st3fx.modules.marks import conversion_of

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.LSTM(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.cells(x)[0])


class Standardised(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(input, weight, self.bias)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def sparse(model: nn.Module) -> Any:
    model, sparsifier = st3fx.convert(model, X, total_steps=9)
    sparsifier.set_sparsity(0.5)
    return model


def cloned(module: nn.Module) -> Any:
    """As libraries for meta learning copy a model: new modules, with the old attributes."""
    twin: Any = module.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    twin._parameters = dict(twin._parameters)
    twin._modules = {name: cloned(child) for name, child in module._modules.items() if child}
    return twin


def shifted(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() * 2 + 0.1 for name, p in model.named_parameters()}


def put(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        model.get_submodule(path)._parameters[key] = value  # type: ignore[assignment]


def test_a_clone_computes_with_its_own_weights() -> None:
    model = sparse(mlp())
    values, before = shifted(model), model(X)
    twin = cloned(model)
    put(twin, values)
    assert torch.equal(twin(X), torch.func.functional_call(model, values, (X,)))
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("make", [mlp, Recurrent])
def test_a_replica_of_data_parallelism_has_its_own_weights(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_replicate = importlib.import_module("torch.nn.parallel.replicate")
    monkeypatch.setattr(torch_replicate, "_get_device_index", lambda *_: 0)

    def doubled(tensors: list[Tensor], devices: list[int], detach: bool = False) -> Any:
        return [[tensor * 2 + 0.1 for tensor in tensors] for _ in devices]

    monkeypatch.setattr(torch_replicate, "_broadcast_coalesced_reshape", doubled)
    model = sparse(make())
    replica = torch_replicate.replicate(model, [0, 1])[1]
    expected = torch.func.functional_call(model, shifted(model), (X,))
    torch.testing.assert_close(replica(X), expected, rtol=0, atol=0)


def test_a_copy_of_the_root_alone_leaves_the_run_where_it_is() -> None:
    model = sparse(mlp())
    run: Any = conversion_of(model).run
    twin = copy.copy(model)
    assert run.root is model
    assert torch.equal(twin(X), model(X))
    del twin
    assert run.root is model


def test_a_clone_of_what_only_a_graph_makes_sparse_is_refused() -> None:
    model = sparse(Standardised(8, 16))
    with pytest.raises(ForwardError, match="a shallow copy of that has no graph"):
        cloned(model)(X)
