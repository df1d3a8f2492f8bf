"""What was changed after the conversion: named, left out, or gone on with."""

from __future__ import annotations

import contextlib
import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from st3fx.errors import DriftWarning, FoldError, StateError

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        self.head: nn.Module | None = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return y if self.head is None else self.head(y)


def sparse(**options: Any) -> tuple[Any, st3fx.Sparsifier]:
    model, sparsifier = st3fx.convert(Net(), X, total_steps=10, verify=False, **options)
    sparsifier.set_sparsity(0.5)
    return model, sparsifier


class Adapter(nn.Module):
    """A low-rank adapter around a layer, as LoRA libraries put it there."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.a, self.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 16, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.base_layer(x) + self.b(self.a(x))


def set_none(model: Any) -> None:
    model.head = None


GONE: dict[str, Any] = {
    "Identity": lambda m: setattr(m, "head", nn.Identity()),
    "None": set_none,
    "deleted": lambda m: delattr(m, "head"),
}
REPLACED: dict[str, Any] = {
    "a new head": lambda m: setattr(m, "head", nn.Linear(16, 7)),
    "another class": lambda m: setattr(m, "head", nn.Bilinear(16, 16, 3)),
    "in a container": lambda m: m.body.__setitem__(0, nn.Linear(8, 16)),
    "a parameter": lambda m: setattr(m.head, "weight", nn.Parameter(torch.randn(3, 16))),
    "of another shape": lambda m: setattr(m.head, "weight", nn.Parameter(torch.randn(9, 16))),
}
ASKED: dict[str, Any] = {
    "step": lambda s: s.step(),
    "set_sparsity": lambda s: s.set_sparsity(0.6),
    "refresh": lambda s: s.refresh(),
    "freeze": lambda s: s.freeze(),
    "sparsity": lambda s: s.sparsity,
    "thresholds": lambda s: s.thresholds,
    "effective_weights": lambda s: s.effective_weights(),
    "state_dict": lambda s: s.state_dict(),
    "load_state_dict": lambda s: s.load_state_dict({"step": 0, "thresholds": {}}),
}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_has_gone_leaves_the_plan_with_a_word(change: Any, ask: Any) -> None:
    model, sparsifier = sparse()
    before = model.body(X)
    change(model)
    odd = ask is ASKED["load_state_dict"]  # its state is of no site
    with (
        pytest.warns(DriftWarning, match=r"head.weight is no longer in the model"),
        pytest.raises(StateError, match="sites differ") if odd else contextlib.nullcontext(),
    ):
        ask(sparsifier)
    assert [site.name for site in sparsifier.plan.sites] == ["body.0.weight", "body.2.weight"]
    assert sparsifier.plan.skipped[-1].name == "head.weight"
    if ask is ASKED["thresholds"]:
        assert torch.equal(model.body(X), before)
    assert torch.equal(st3fx.fold(model).body(X), model.body(X))  # type: ignore[operator]


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_what_was_replaced_is_named(change: Any, ask: Any) -> None:
    model, sparsifier = sparse()
    change(model)
    with pytest.raises(StateError, match=r"weight was replaced after the conversion .*drop\("):
        ask(sparsifier)


@pytest.mark.parametrize("change", REPLACED.values(), ids=REPLACED)
def test_dropping_goes_on_without_it(change: Any) -> None:
    model, sparsifier = sparse()
    change(model)
    name = "body.0.weight" if change is REPLACED["in a container"] else "head.weight"
    sparsifier.drop(name)
    sparsifier.set_sparsity(None)
    sparsifier.step()
    sparsifier.set_sparsity(0.5)
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)
    assert name not in sparsifier.thresholds
    folded: Any = st3fx.fold(model)
    assert bool((folded.get_parameter(name) != 0).all())
    assert torch.equal(folded.body(X), model.body(X))
    with pytest.raises(StateError, match="is no site of this model"):
        sparsifier.drop(name)


def test_an_intact_site_can_be_dropped() -> None:
    model, sparsifier = sparse()
    latent = model.get_parameter("head.weight")
    sparsifier.drop("head.weight")
    assert torch.equal(model.head.weight, latent)
    assert torch.equal(st3fx.fold(model).get_parameter("head.weight"), latent)


def test_a_new_dense_layer_is_named_when_the_model_runs_and_when_it_is_folded() -> None:
    model, _ = sparse()
    model.head = nn.Linear(16, 7)
    with pytest.warns(DriftWarning, match="head is another Linear"):
        model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        model(X)  # once
    with pytest.warns(DriftWarning, match="head.weight was replaced"):
        folded = st3fx.fold(model)
    assert torch.equal(folded.eval()(X), model.eval()(X))


def test_an_assigned_parameter_is_used_as_it_is() -> None:
    model, _ = sparse()
    value = nn.Parameter(torch.randn(3, 16))
    model.head.weight = value
    assert model.head.weight is value
    assert torch.equal(model(X), torch.nn.functional.linear(model.body(X), value, model.head.bias))
    with pytest.warns(DriftWarning, match=r"head.weight was replaced .*another parameter was assi"):
        folded = st3fx.fold(model)
    assert torch.equal(folded.eval()(X), model.eval()(X))
    with torch.no_grad():
        value[0] = 0  # as tools that fuse layers leave zeros
    st3fx.fold(model)


def test_a_model_whose_sites_were_all_assigned() -> None:
    model, _ = sparse()
    for layer in (model.body[0], model.body[2], model.head):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    with pytest.raises(FoldError, match="other parameters were assigned to all of its sites"):
        st3fx.fold(model)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.b(self.a(x))


def reordered(model: Any) -> None:
    model.layers = nn.ModuleList(reversed([*model.layers]))


def exchanged(model: Any) -> None:
    model.a, model.b = model.b, model.a


def shared(model: Any) -> None:
    model.b = model.a


MOVED: dict[str, Any] = {
    "the first of a list deleted": (lambda m: m.layers.__delitem__(0), 4),
    "popped": (lambda m: m.layers.pop(1), 4),
    "something inserted": (lambda m: m.layers.insert(1, nn.Identity()), 5),
    "reordered": (reordered, 5),
    "exchanged": (exchanged, 5),
    "one twice": (shared, 4),
}


@pytest.mark.filterwarnings("ignore:.* is no longer in the model")
@pytest.mark.parametrize(("change", "left"), MOVED.values(), ids=MOVED)
def test_what_was_moved_stays_a_site(change: Any, left: int) -> None:
    model, sparsifier = st3fx.convert(Stack(), X, total_steps=10, verify=False)
    sparsifier.set_sparsity(0.4)
    change(model)
    sparsifier.set_sparsity(0.5)
    assert len(sparsifier.plan.sites) == left
    folded = st3fx.fold(model)
    weights = {p.data_ptr(): p for p in folded.parameters() if p.dim() > 1}
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zeros == pytest.approx(0.5 * 64 * left, abs=1)
    assert torch.equal(folded(X), model(X))


def test_the_same_parameter_again_is_no_change() -> None:
    model, sparsifier = sparse()
    latent = model.get_parameter("head.weight")
    model.head.weight = latent
    sparsifier.set_sparsity(0.7)
    assert model.get_parameter("head.weight") is latent


def test_an_adapter_around_a_sparse_layer() -> None:
    model, sparsifier = sparse()
    model.body[0] = Adapter(model.body[0])
    before = model.body[0].base_layer.weight.clone()
    sparsifier.set_sparsity(0.5)
    assert torch.equal(model.body[0].base_layer.weight, before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)
    twin = copy.deepcopy(model)
    assert st3fx.Sparsifier(twin).thresholds == sparsifier.thresholds
    folded: Any = st3fx.fold(model)
    assert bool((folded.body[0].base_layer.weight == 0).any())
    assert torch.equal(folded.eval()(X), model.eval()(X))


def test_loading_and_assigning_replaces_latent_weights() -> None:
    model, sparsifier = sparse()
    other = {name: torch.randn_like(value) for name, value in Net().state_dict().items()}
    model.load_state_dict(other, assign=True)
    sparsifier.set_sparsity(0.5)
    assert sparsifier.sparsity == pytest.approx(0.5, abs=0.01)
    assert torch.equal(model.get_parameter("head.weight"), other["head.weight"])


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 2.0, self.bias)


class Renamed(nn.Linear):
    """Adds nothing, and gives no effective weight either."""


@pytest.mark.parametrize("kind", [Scaled, Renamed])
def test_a_class_that_was_set_is_named(kind: Any) -> None:
    model, sparsifier = sparse()
    model.body[0].__class__ = kind
    with pytest.warns(DriftWarning, match=r"the class of body.0 was set to (Scaled|Renamed)"):
        output = model(X)
    with pytest.raises(StateError, match=r"body.0.weight was replaced .*the class of body.0"):
        sparsifier.step()
    with pytest.warns(DriftWarning, match=r"the class of body.0 was set to"):
        folded = st3fx.fold(model)
    assert torch.equal(folded(X), output)
    sparsifier.drop("body.0.weight")
    sparsifier.step()


class Doubled:
    def forward(self, x: Tensor) -> Any:
        return 2 * super().forward(x)  # type: ignore[misc]


@pytest.mark.parametrize("part", ["", "body", "body.0"])
def test_a_class_made_of_ours_is_kept_by_copies_and_folding(part: str) -> None:
    model, sparsifier = sparse()
    mixed = model.get_submodule(part)
    before, plain = model(X), type(mixed)
    mixed.__class__ = type("Mixed", (Doubled, plain), {})
    output = model(X)
    assert not torch.equal(output, before)
    assert torch.equal(copy.deepcopy(model)(X), output)
    folded = st3fx.fold(model)
    assert torch.equal(folded(X), output)
    assert isinstance(folded.get_submodule(part), Doubled)
    sparsifier.step()
