"""Sparse, nested and resized tensors: as inputs, buffers, outputs, and set back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nested import nested_tensor

import st3fx
from st3fx.modules.copying import copied
from st3fx.modules.state import preserved
from st3fx.passes.convert.equality import digest, equal
from st3fx.tensors import Saved, parts, same_bits

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta", "ignore:The PyTorch API of nested tensors"
)

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
MASK = (torch.rand(6, 6, generator=torch.Generator().manual_seed(4)) > 0.5).float()


def ragged(layout: Any) -> Tensor:
    make = torch.Generator().manual_seed(5)
    rows = [torch.randn(count, 8, generator=make) for count in (3, 2)]
    found: Tensor = nested_tensor(rows, layout=layout)
    return found


KINDS: dict[str, Any] = {
    "dense": X.clone,
    "coo": MASK.to_sparse,
    "csr": MASK.to_sparse_csr,
    "csc": MASK.to_sparse_csc,
    "bsr": lambda: MASK.to_sparse_bsr((2, 2)),
    "nested": lambda: ragged(torch.strided),
    "jagged": lambda: ragged(torch.jagged),
}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def _values(tensor: Tensor) -> Tensor:
    return parts(tensor)[0 if tensor.is_nested else -1]


@kinds
def test_equal_tensors_have_equal_digests(make: Any) -> None:
    tensor, other = make(), make()
    assert equal(tensor, tensor.clone())
    assert digest(tensor) == digest(tensor.clone())
    _values(other).view(-1)[:1].add_(1)
    assert not equal(tensor, other)
    assert digest(tensor) != digest(other)


def test_kinds_differ() -> None:
    tensors = [make() for name, make in KINDS.items() if name != "dense"]
    for index, left in enumerate(tensors):
        for right in tensors[index + 1 :]:
            assert not equal(left, right)
            assert digest(left) != digest(right)


@kinds
def test_a_tensor_goes_back_to_its_values(make: Any) -> None:
    tensor = make()
    expected, saved = tensor.clone(), Saved(tensor)
    assert not saved.changed
    _values(tensor).mul_(3)
    state = (saved.changed, saved.moved)
    assert state == (True, False)
    saved.restore()
    assert equal(tensor, expected)


@pytest.mark.parametrize("change", ["data", "resize", "set"])
def test_a_tensor_goes_back_to_its_memory(change: str) -> None:
    tensor = torch.arange(6.0)
    saved, memory = Saved(tensor), tensor.untyped_storage()._cdata
    if change == "data":
        tensor.data = torch.zeros(2, 2)
    elif change == "resize":
        tensor.resize_(3, 4).fill_(7)
    else:
        tensor.set_(torch.zeros(3).untyped_storage())
    assert saved.moved
    saved.restore()
    assert torch.equal(tensor, torch.arange(6.0))
    assert tensor.untyped_storage()._cdata == memory


def test_bits_tell_what_values_do_not() -> None:
    zero, nan = torch.tensor([0.0]), torch.tensor([torch.nan])
    assert not same_bits(zero, -zero)
    assert same_bits(nan, nan.clone())
    assert same_bits(torch.tensor([1j]), torch.tensor([1j]))
    assert same_bits(torch.tensor([True]), torch.tensor([True]))


class Graph(nn.Module):
    """A graph network, whose adjacency is an input or a buffer."""

    def __init__(self, adjacency: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.adjacency: Tensor | None
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor, adjacency: Tensor | None = None) -> Any:
        adjacency = self.adjacency if adjacency is None else adjacency
        assert adjacency is not None
        return torch.sparse.mm(
            adjacency, self.last(torch.sparse.mm(adjacency, self.first(x)).relu())
        )


@pytest.mark.parametrize("kind", ["coo", "csr", "csc"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("where", ["input", "buffer", "attribute"])
def test_graph_networks(kind: str, verify: bool, where: str) -> None:
    adjacency = KINDS[kind]()
    model = Graph(adjacency if where == "buffer" else None)
    inputs = (X, adjacency) if where == "input" else (X,)
    if where == "attribute":
        del model.adjacency
        model.adjacency = adjacency
    converted, sparsifier = st3fx.convert(model, inputs, verify=verify)
    assert len(sparsifier.plan.sites) == 2
    assert torch.equal(converted(*inputs), model(*inputs))
    sparsifier.set_sparsity(0.5)
    oracle = copied(model)
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    assert torch.equal(converted(*inputs), oracle(*inputs))
    assert torch.equal(st3fx.fold(converted)(*inputs), oracle(*inputs))


class Padded(nn.Module):
    """Layers on nested tensors."""

    def __init__(self, *, branches: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.branches = nn.Linear(8, 8), nn.Linear(8, 4), branches

    def forward(self, x: Tensor) -> Any:
        y = self.last(self.first(x).relu())
        return y if not self.branches or x.dim() == 3 else -y


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs(layout: Any, branches: bool) -> None:
    model, x = Padded(branches=branches), ragged(layout)
    converted, sparsifier = st3fx.convert(model, x)
    assert equal(converted(x), model(x))
    sparsifier.set_sparsity(0.5)
    oracle = copy.deepcopy(model)
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    assert equal(converted(x), oracle(x))
    dense = torch.randn(2, 3, 8)
    assert torch.equal(converted(dense), oracle(dense))
    assert equal(st3fx.fold(converted)(x), oracle(x))


def test_a_sparse_output() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Any:
            return self.fc(x).to_sparse()

    converted, _ = st3fx.convert(Sparse(), X)
    assert converted(X).layout is torch.sparse_coo


def test_a_sparse_parameter_stays_as_it_is() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.weight = nn.Linear(8, 4), nn.Parameter(MASK.to_sparse())

        def forward(self, x: Tensor) -> Any:
            return torch.sparse.mm(self.weight, self.fc(x))

    model = Stored()
    converted, sparsifier = st3fx.convert(model, X)
    (skipped,) = sparsifier.plan.skipped
    assert skipped.reason == "a torch.sparse_coo tensor: its zeros are not stored as it is"
    assert torch.equal(converted(X), model(X))


class Resizes(nn.Module):
    """Buffers that a forward resizes: the bounds of an observer, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.low: Tensor
        self.cache: Tensor
        self.register_buffer("low", torch.zeros(0))
        self.register_buffer("cache", torch.zeros(0))

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        found = y.detach().min(0).values
        if self.low.numel() == 0:
            self.low.resize_(found.shape).copy_(found)
        else:
            self.low.copy_(torch.minimum(self.low, found))
        self.cache.resize_(len(x)).fill_(2)
        return (y - self.low) * self.cache[:, None]


def test_buffers_that_are_resized() -> None:
    model = Resizes()
    with preserved(model):
        model(X)
        assert model.low.numel() == 4
    assert model.low.shape == model.cache.shape == (0,)
    converted, sparsifier = st3fx.convert(model, X)
    assert [site.name for site in sparsifier.plan.sites] == ["fc.weight"]
    assert model.low.shape == converted.get_buffer("low").shape == (0,)
    for x in (X, X[:2] - 1):
        assert torch.equal(converted(x), model(x))
