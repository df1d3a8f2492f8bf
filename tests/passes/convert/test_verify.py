"""A graph that computes something else is found and dropped to its children."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import st3fx
from st3fx.errors import VerificationError
from st3fx.passes.convert import islands as islands_module
from st3fx.passes.convert import rewrite as rewrite_module
from st3fx.passes.convert.equality import Difference, digest, equal, first_difference
from st3fx.passes.trace import capture
from tests.nets import Net, image
from tests.parity import check

Spoil = Callable[[fx.Graph], None]


def spoil_captures(monkeypatch: pytest.MonkeyPatch, spoil: Spoil, *names: str) -> None:
    """Let traces of the named modules give a graph that computes something else."""

    def spoiled(name: str, *args: Any, **options: Any) -> Any:
        found = capture(name, *args, **options)
        if name in names:
            spoil(found.graph)
        return found

    monkeypatch.setattr(islands_module, "capture", spoiled)


def scale_output(graph: fx.Graph) -> None:
    output = next(node for node in graph.nodes if node.op == "output")
    (value,) = output.args
    with graph.inserting_before(output):
        output.args = (graph.call_function(torch.mul, (value, 1.0 + 2**-20)),)


def detach_first(graph: fx.Graph) -> None:
    """Right output, gradients that are missing."""
    node = next(node for node in graph.nodes if node.op == "call_function")
    with graph.inserting_after(node):
        cut = graph.call_method("detach", (node,))
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)


def drop_dropout(graph: fx.Graph) -> None:
    """Right in eval mode only."""
    node = next(node for node in graph.nodes if node.target == "drop")
    node.replace_all_uses_with(node.args[0])
    graph.erase_node(node)


def bake_batch(graph: fx.Graph) -> None:
    """Right for the batch of the example only."""
    output = next(node for node in graph.nodes if node.op == "output")
    (value,) = output.args
    with graph.inserting_before(output):
        output.args = (graph.call_method("narrow", (value, 0, 0, 3)),)


def detach_bias(graph: fx.Graph) -> None:
    """Only a parameter that is no site gets no gradient."""
    node = next(node for node in graph.nodes if node.target == "head.bias")
    with graph.inserting_after(node):
        cut = graph.call_method("detach", (node,))
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)


SPOILS = [scale_output, detach_bias, detach_first, drop_dropout, bake_batch]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_wrong_graph_is_dropped(monkeypatch: pytest.MonkeyPatch, spoil: Spoil) -> None:
    spoil_captures(monkeypatch, spoil, "")
    checked = check(Net(), image(), verify=True)
    assert "" not in checked.islands
    assert "block" in checked.islands
    assert "did not compute what the module computes" in checked.opaque[""]
    assert checked.plan.verified


@pytest.mark.parametrize("spoil", SPOILS)
def test_without_verification_it_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    spoil_captures(monkeypatch, spoil, "")
    if spoil is bake_batch:
        model, _ = st3fx.convert(Net(), image(), verify=False)
        assert model(image(5)).shape == (3, 5)
        return
    with pytest.raises(AssertionError):
        check(Net(), image(), verify=False)


class Rows(nn.Module):
    """Two blocks under a forward that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.second(y) if y.sum() < 1e9 else y


def test_only_the_guilty_graph_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_captures(monkeypatch, scale_output, "second")
    checked = check(Rows(), torch.randn(3, 6), verify=True)
    assert list(checked.islands) == ["first", "second.0"]
    assert set(checked.opaque) == {"", "second"}


def test_a_graph_that_keeps_a_weight_dense_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right before the first threshold, wrong after it."""
    original = rewrite_module.insert_op

    def forgetful(graph: Any, uses: Any, site: Any, *rest: Any) -> bool:
        if site.name == "head.weight" and uses.island == "":
            return False
        return original(graph, uses, site, *rest)

    monkeypatch.setattr(rewrite_module, "insert_op", forgetful)
    checked = check(Net(), image(), verify=True)
    assert "" not in checked.islands
    assert "head.weight" in checked.sites


def test_a_graph_that_raises_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(graph: fx.Graph) -> None:
        output = next(node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            output.args = (graph.call_method("no_such_method", (output.args[0],)),)

    spoil_captures(monkeypatch, spoil, "")
    assert "" not in check(Net(), image(), verify=True).islands


class Counts(nn.Module):
    """Not deterministic: nothing that a seed could fix."""

    counter = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) + next(self.counter)


def test_where_no_graph_is_to_blame_it_says_so() -> None:
    with pytest.raises(VerificationError, match=r"Counts: the train output.*verify=False"):
        st3fx.convert(Counts(), torch.randn(2, 6))


def test_a_failed_conversion_in_place_is_undone() -> None:
    model = Counts()
    keys, attributes = list(model.state_dict()), set(model.__dict__)
    with pytest.raises(VerificationError):
        st3fx.convert(model, torch.randn(2, 6), inplace=True)
    assert list(model.state_dict()) == keys
    assert set(model.__dict__) == attributes
    assert "st3fx_forward" not in model.fc.__dict__


def test_verification_leaves_gradients_and_flags() -> None:
    model = Net()
    model(image()).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.drop.eval()
    converted, _ = st3fx.convert(model, image(), inplace=True)
    assert converted is model
    assert all(p.grad is gradients[name] for name, p in converted.named_parameters())
    assert not model.drop.training
    assert model.block.training


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), False),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64), False),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([1]), 1, False),
        (3, 3, True), (3, 4, False), (3, 3.0, False), ("a", "a", True),
        (None, None, True), (None, torch.zeros(1), False), (object(), object(), True),
    ],
)  # fmt: skip
def test_equality(left: Any, right: Any, same: bool) -> None:
    assert equal(left, right) is same
    assert (first_difference([left], [right]) is None) is same


def test_structures_that_differ() -> None:
    x = torch.zeros(2)
    assert first_difference((x, x), [x, x]) == " (its structure)"
    assert first_difference({"a": x}, {"b": x}) == " (its structure)"
    assert first_difference((x, x), (x, x + 1)) == " (leaf 1)"


def test_digests() -> None:
    x = torch.randn(3, 4)
    assert digest(x) == digest(x.clone()) != digest(x + 2**-20)
    assert digest(x) != digest(x.T)
    assert digest(x) == digest(x.T.contiguous().T)
    assert digest(torch.zeros(2)) == digest(-torch.zeros(2))
    assert digest(None) == b""
    assert digest(x.bfloat16()) != digest(x.half())
    assert digest(torch.tensor(1.0)) != digest(torch.tensor([1.0]))


def test_a_sum_in_another_order_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads may add up a gradient in any order; one does not, and then all is equal."""
    seen = []

    def only_with_threads(*_: Any) -> Difference | None:
        seen.append(torch.get_num_threads())
        return None if seen[-1] == 1 else Difference("gradient of fc.weight")

    monkeypatch.setattr("st3fx.passes.convert.verify.differs", only_with_threads)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _, sparsifier = st3fx.convert(nn.Linear(4, 3), torch.randn(2, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [2, 1]
    assert sparsifier.plan.verified
    assert [island.name for island in sparsifier.plan.islands] == [""]


class Cache:
    """What a forward fills and returns, and which holds another of its kind."""

    def __init__(self, keys: Tensor, inner: Any = None) -> None:
        self.layers = [keys]
        self.inner = inner


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_tensors_inside_of_objects_are_compared(depth: int) -> None:
    def made(value: float) -> Any:
        cache = Cache(torch.full((2,), value))
        for _ in range(depth):
            cache = Cache(torch.zeros(1), {"next": cache})
        cache.inner = [cache.inner, cache]
        return {"y": torch.ones(1), "cache": cache}

    assert first_difference(made(1.0), made(1.0)) is None
    assert first_difference(made(1.0), made(2.0)) == " (in its Cache)"


class Fills(nn.Module):
    """Gives a cache beside its output, which a spoiled graph fills with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x), Cache(self.keys(x).relu())


def test_a_graph_that_fills_a_cache_wrongly_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(graph: fx.Graph) -> None:
        node = next(node for node in graph.nodes if node.target == "relu")
        node.target = "sigmoid"

    spoil_captures(monkeypatch, spoil, "")
    _, sparsifier = st3fx.convert(Fills(), torch.randn(3, 4))
    assert "did not compute" in sparsifier.plan.opaque[0].reason


def test_weights_that_are_nan_are_named() -> None:
    last = nn.Linear(4, 2)
    net = nn.Sequential(nn.Linear(4, 4), last)
    with torch.no_grad():
        last.weight[0, 0] = torch.nan
    with pytest.raises(VerificationError, match=r"^weights have NaN: 1\.weight; load"):
        st3fx.convert(net, torch.randn(2, 4))
