"""What a forward keeps in attributes for others to read: its graph gives it, the call stores it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import st3fx
from tests.parity import check
from tests.passes.trace.test_settled import applies

X = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """An activation, as those who plot attention maps do it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 4)
        self.last: Any = None

    def forward(self, x: Tensor) -> Any:
        return self.out(self.keep(self.fc(x)))

    def keep(self, y: Any) -> Any:
        self.last = y
        return y.relu()


class Many(Keeps):
    """A list and a dict that are made anew, beside a number; read again in the same call."""

    def keep(self, y: Any) -> Any:
        self.last = [y, {"half": y / 2}, 3]
        return self.last[0].relu() + self.last[1]["half"] * self.last[2]


class Recurrent(Keeps):
    """Reads what the last call has kept."""

    def keep(self, y: Any) -> Any:
        self.last = y.detach() if self.last is None else 0.5 * self.last + y.detach()
        return y + self.last


class Inside(nn.Module):
    """A part of the model keeps something, and its parent reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Keeps()

    def forward(self, x: Tensor) -> Any:
        return self.part(x) * self.part.last.mean()


class NewName(Keeps):
    def keep(self, y: Any) -> Any:
        self.loss = y.square().mean()
        return y


def kept(model: nn.Module) -> Any:
    """Everything that a call has left in attributes, below all modules."""
    names = ("last", "loss")
    return [[vars(module).get(name) for name in names] for module in model.modules()]


@pytest.mark.parametrize("kind", [Keeps, Many, Recurrent, Inside, NewName])
def test_attributes_are_what_the_originals_are(kind: type[nn.Module]) -> None:
    original = kind()
    checked = check(original, X, verify=True)
    assert list(checked.islands) == [""]
    original.load_state_dict(checked.sparsifier.effective_weights(), strict=False)
    model = checked.model
    for module in (*model.modules(), *original.modules()):
        if isinstance(module, Keeps):
            module.last = None
    for x in (X, X + 1, X):
        assert torch.equal(model(x), original(x))
        torch.testing.assert_close(kept(model), kept(original), rtol=0, atol=0)
    assert applies(model, X)


def test_what_is_kept_has_its_gradient() -> None:
    original: Any = NewName()
    model: Any = st3fx.convert(original, X)[0]
    for net in (original, model):
        net(X)
        net.loss.backward()
    assert applies(model, X)
    assert torch.equal(model.fc.weight.grad, original.fc.weight.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_stores_in_itself(copied: Any) -> None:
    model: Any = st3fx.convert(Keeps(), X)[0]
    twin = copied(model)
    twin(X)
    assert model.last is None
    assert twin.last.shape == X.shape


def test_the_printed_graph_gives_the_output_alone() -> None:
    model: Any = st3fx.convert(Keeps(), X)[0]
    (island,) = model.st3fx_islands
    assert torch.equal(island(X), model(X))


class Appends(Keeps):
    """Adds to a list that was there before: it grows from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.last = []

    def keep(self, y: Any) -> Any:
        self.last.append(y.detach())
        return y


class Opaque(Keeps):
    """Keeps an object that no graph can give."""

    def keep(self, y: Any) -> Any:
        self.last = [y, object()]
        return y


@pytest.mark.parametrize("kind", [Appends, Opaque])
def test_what_a_graph_cannot_give_stops_the_trace(kind: type[Keeps]) -> None:
    original = kind()
    model: Any
    model, sparsifier = st3fx.convert(original, X)
    assert "stores last while it runs" in sparsifier.plan.opaque[0].reason
    for count in (1, 2):
        assert torch.equal(model(X), original(X))
        assert kind is Opaque or len(model.last) == count


class MadeOnce(nn.Module):
    """Makes a tensor in its first call, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "made"):
            self.made = torch.ones(8)
        kept: Tensor = x + self.lin(x) * self.made
        return kept


def test_graphs_are_printed_before_the_first_call_has_stored_anything() -> None:
    x = torch.randn(4, 8)
    model: Any = st3fx.convert(MadeOnce(), x)[0]
    assert not hasattr(model, "made")
    assert all("made" in str(island.graph) for island in model.st3fx_islands)
    expected = model(x)
    assert torch.equal(model.st3fx_islands[0](x), expected)
