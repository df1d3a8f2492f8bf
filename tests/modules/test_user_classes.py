"""Classes of users that ask for more than others: converted, copied, saved, made anew."""

from __future__ import annotations

import copy
import io
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import StateError

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))


class Watching(nn.Module):
    """Sees each read of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4))

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Registered(nn.Module):
    """Keeps its subclasses by a name that they have to give."""

    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        assert key not in cls.known
        cls.known[key] = cls


class Plugin(Registered, key="plugin"):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) @ self.weight


def mlp() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def sparse(model: nn.Module) -> Any:
    model, sparsifier = st3fx.convert(model, X, total_steps=9)
    sparsifier.set_sparsity(0.5)
    return model


@pytest.mark.parametrize("make", [Watching, Plugin])
def test_odd_classes(make: Any) -> None:
    model = sparse(make())
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    folded: Any = st3fx.fold(model)
    assert type(folded) is make
    assert bool((folded.weight == 0).any())
    for twin in (model, copy.deepcopy(model), torch.load(memory, weights_only=False)):
        assert isinstance(twin, make)
        assert torch.equal(twin(X), folded(X))
    assert Registered.known == {"plugin": Plugin}


class Strict(type):
    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if any(isinstance(base, Strict) for base in bases):
            raise TypeError("is final")
        return super().__new__(cls, name, bases, body)


class Final(nn.Linear, metaclass=Strict):
    pass


def test_a_metaclass_that_refuses_is_named() -> None:
    model = nn.Sequential(Final(8, 8), nn.Linear(8, 4))
    with pytest.raises(StateError, match=r"Final cannot be converted, because Strict refuses"):
        st3fx.convert(model, X, inplace=True)
    assert type(model[1]) is nn.Linear
    model(X)
    st3fx.convert(model, X, exclude=Final)


def test_a_layer_made_from_the_class_of_a_converted_one_is_a_plain_one() -> None:
    model = sparse(mlp())
    fresh = type(model[0])(8, 4)
    assert type(fresh) is nn.Linear
    again = sparse(nn.Sequential(fresh, type(model)(nn.Linear(4, 4))))
    assert [site.name for site in again.st3fx_plan.sites] == ["0.weight", "1.0.weight"]
    assert type(type(sparse(Plugin()))()) is Plugin


def test_what_is_refused_leaves_the_model_as_it_was() -> None:
    model = sparse(mlp())
    before, keys = model(X), list(model.state_dict())
    with pytest.raises(StateError, match=r"0.weight has a threshold, and torch.nn.utils.spectral"):
        nn.utils.spectral_norm(model[0])
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X), before)


def test_a_weight_that_becomes_a_buffer_ends_its_site() -> None:
    model = sparse(mlp())
    before, weight = model(X), model[0].weight.detach().clone()
    del model[0].weight
    with pytest.raises(AttributeError, match="weight"):
        _ = model[0].weight
    model[0].register_buffer("weight", weight)
    assert torch.equal(model(X), before)
    with pytest.raises(StateError, match=r"0.weight was replaced"):
        st3fx.Sparsifier(model).step()
