"""Converted models as parts of others, and the wrappers around them."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import st3fx
from st3fx.errors import DriftWarning, FoldError, HookWarning

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


def mlp(features: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 16))


def convert(model: nn.Module, x: Tensor = X, sparsity: float = 0.6) -> Any:
    converted, sparsifier = st3fx.convert(model, x, total_steps=10, verify=False)
    sparsifier.set_sparsity(sparsity)
    return converted


class Whole(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, mlp())
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(getattr(self, self.name)(x))


@pytest.mark.parametrize("name", ["backbone", "module", "model", "_orig_mod"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_part_under_any_name(name: str, inplace: bool) -> None:
    model = Whole(name)
    setattr(model, name, convert(getattr(model, name)))
    expected = model(X)
    folded = st3fx.fold(model, inplace=inplace)
    assert type(folded) is Whole
    assert torch.equal(folded(X), expected)
    assert bool((folded.get_parameter(f"{name}.0.weight") == 0).any())


def test_two_parts_whose_sites_have_the_same_names() -> None:
    model = nn.Sequential(convert(mlp()), convert(mlp(16), torch.randn(4, 16), 0.8))
    expected = model(X)
    folded = st3fx.fold(model)
    assert torch.equal(folded(X), expected)
    for name, parameter in folded.named_parameters():
        assert (parameter.dim() < 2) or bool((parameter == 0).any()), name
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected)


def test_two_single_layers() -> None:
    model = nn.Sequential(convert(nn.Linear(8, 16)), convert(nn.Linear(16, 8), torch.randn(2, 16)))
    expected = model(X)
    folded: Any = st3fx.fold(model)
    assert torch.equal(folded(X), expected)
    assert bool((folded[0].weight == 0).any() and (folded[1].weight == 0).any())


WRAPPERS: dict[str, Any] = {
    "compile": lambda m: torch.compile(m, backend="eager"),
    "averaged": AveragedModel,
    "data parallel": nn.DataParallel,
    "two": lambda m: torch.compile(AveragedModel(m), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_of_torch_are_taken_off(wrap: Any) -> None:
    model = convert(mlp())
    folded = st3fx.fold(wrap(model))
    assert list(folded.state_dict()) == list(mlp().state_dict())
    assert torch.equal(folded(X), model(X))


def test_a_module_without_a_converted_part() -> None:
    with pytest.raises(FoldError, match="Sequential is not a converted model"):
        st3fx.fold(mlp())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.proj = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return (self.body(x).relu() @ self.proj) * scale


def method(model: Any) -> Any:
    old = model.forward
    return types.MethodType(lambda _, x: old(x), model)


def closure(model: Any) -> Any:
    old = model.forward
    return lambda x: old(x)  # noqa: PLW0108 (a function of its own)


FORWARDS: dict[str, Any] = {
    "partial": lambda m: functools.partial(m.forward, scale=1.0),
    "partial of partial": lambda m: functools.partial(functools.partial(m.forward), scale=1.0),
    "method": method,
    "closure": closure,
    "bound": lambda m: m.forward,
}


@pytest.mark.parametrize(
    ("where", "make"),
    [("", make) for make in FORWARDS.values()]
    + [("body", FORWARDS[name]) for name in ("method", "closure", "bound")],
)
def test_a_forward_that_is_wrapped_after_the_conversion(where: str, make: Any) -> None:
    model, sparsifier = st3fx.convert(Scaled(), X, total_steps=10, verify=False)
    sparsifier.set_sparsity(0.5)
    expected = model(X)
    inner = model.get_submodule(where)
    inner.forward = make(inner)
    assert torch.equal(model(X), expected)
    sparsifier.set_sparsity(0.6)
    assert sparsifier.sparsity == pytest.approx(0.6, abs=0.01)
    means_itself = make in (method, closure)
    said = pytest.warns(HookWarning, match="'forward' of .* in the copy that fold makes")
    with said if means_itself else contextlib.nullcontext():
        folded = st3fx.fold(model)
    assert torch.equal(folded.eval()(X), model.eval()(X))
    assert bool((folded.get_parameter("proj") == 0).any())
    again = folded.get_submodule(where).forward
    if isinstance(again, functools.partial):
        assert again.func.__func__ is Scaled.forward  # type: ignore[attr-defined]
    sparsifier.set_sparsity(None)
    sparsifier.step()


def test_a_wrapped_forward_is_that_of_the_class_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any
    model, sparsifier = st3fx.convert(Scaled(), X, total_steps=10, verify=False)
    sparsifier.set_sparsity(0.5)
    model.forward = functools.partial(model.forward)
    monkeypatch.setattr(Scaled, "forward", lambda self, x: self.body(x))
    assert torch.equal(st3fx.fold(model)(X), model(X))


def test_hooks_on_gradients_are_kept_and_closures_named() -> None:
    model: Any = mlp()
    seen: list[str] = []
    model[0].weight.register_hook(lambda grad: seen.append("weight"))
    model[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append("bias"))
    model[2].register_forward_hook(lambda *_: seen.append(type(model).__name__))
    with pytest.warns(HookWarning, match=r"the hook of 2 \(test_parts.py:\d+\) has a part of"):
        converted, _ = st3fx.convert(model, X, total_steps=10, verify=False)
    seen.clear()
    converted(X).sum().backward()
    assert sorted(seen) == ["Sequential", "bias", "weight"]
    assert model[0].weight.grad is None


def test_weights_that_share_memory_share_that_of_the_copy() -> None:
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 4)]
    model: Any = nn.Sequential(*layers)
    model[2].weight.data = model[0].weight.data
    model[3].weight.data = model[0].weight.data[4:]
    converted, _ = st3fx.convert(model, X, verify=False)
    ours = [converted.get_parameter(f"{i}.weight") for i in (0, 2, 3)]
    with torch.no_grad():
        ours[0].fill_(3.0)
    assert all(bool((weight == 3).all()) for weight in ours)
    assert not bool((model[0].weight == 3).any())


def test_sharing_memory_says_that_thresholds_are_not_shared() -> None:
    model = convert(mlp())
    with pytest.warns(DriftWarning, match="its thresholds and steps are not"):
        model.share_memory()
    assert all(parameter.is_shared() for parameter in model.parameters())
