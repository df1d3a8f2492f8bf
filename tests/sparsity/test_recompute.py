"""Effective weights that backwards compute again: the bits of kept ones, in less memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import st3fx
from st3fx.errors import StateError
from st3fx.sparsity import cache, recompute

X = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution, a layer that is used twice, a recurrent one, and a head."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3)
        self.bn = nn.BatchNorm2d(16)
        self.twice = nn.Linear(16, 16)
        self.gru = nn.GRU(16, 12, batch_first=True)
        self.head = nn.Linear(12, 4)
        self.checkpointed = checkpointed

    def block(self, x: Tensor) -> Tensor:
        return self.twice(torch.relu(self.twice(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Any:
        x = torch.relu_(self.bn(self.conv(x))).flatten(2).mT
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.head(self.gru(x)[0].mean(1))


def converted(recompute_weights: bool, method: Any = None, net: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    return st3fx.convert(
        Net() if net is None else net(), X, method, total_steps=6, verify=False,
        recompute_weights=recompute_weights,
    )  # fmt: skip


def trained(recompute_weights: bool, method: Any = None, net: Any = None) -> list[Tensor]:
    """Losses, gradients and weights of steps with two batches, an evaluation, and a copy."""
    model, sparsifier = converted(recompute_weights, method, net)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator, found = torch.Generator().manual_seed(2), []
    for step in range(5):
        for _ in range(2):
            loss = model(torch.randn(4, 8, 6, 6, generator=generator)).square().mean()
            (loss + sparsifier.penalty()).backward()
            found.append(loss.detach())
        found += [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
        if step == 2:
            found.append(model.eval()(X).detach())
            twin = copy.deepcopy(model).train()
            twin(X).sum().backward()
            found += [p.grad.clone() for p in twin.parameters()]
            model.train()
    return [*found, *(p.detach().clone() for p in model.parameters())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("gmp", "feather", "dst", "str", "lrr", "probmask", "rigl")},
    **{f"st3 {g}": ("st3", {"granularity": g})
       for g in ("unstructured", "block:4", "nm:2:4", "channels")},
    "gmp block": ("gmp", {"granularity": "block:4"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore::st3fx.errors.EmptyLayerWarning")
def test_the_same_bits(name: str) -> None:
    method, settings = SETTINGS[name]
    own = st3fx.methods.create(method, **settings)
    assert same(trained(True, own), trained(False, own))


def test_beside_checkpoints() -> None:
    net = lambda: Net(checkpointed=True)  # noqa: E731
    assert same(trained(True, None, net), trained(False, None, net))


def under_hooks(recompute_weights: bool) -> tuple[list[Tensor], int]:
    model, sparsifier = converted(recompute_weights)
    sparsifier.set_sparsity(0.7)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    def run(x: Tensor) -> Tensor:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result: Tensor = model(x)
        return result

    loss = run(X).sum() + checkpoint(model, X, use_reentrant=False).square().sum()
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())], len(packed)


def test_beside_hooks_of_others() -> None:
    (ours, fewer), (theirs, more) = under_hooks(True), under_hooks(False)
    assert same(ours, theirs)
    assert 0 < fewer < more


def test_gradients_of_gradients() -> None:
    def second(recompute_weights: bool) -> list[Tensor]:
        model, sparsifier = converted(recompute_weights, st3fx.methods.GMP(), nn_only)
        sparsifier.set_sparsity(0.6)
        weights = list(model.parameters())
        first = torch.autograd.grad(model(X).square().sum(), weights, create_graph=True)
        total = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return list(torch.autograd.grad(total, weights))

    assert same(second(True), second(False))


def nn_only() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5))


def test_none_is_kept() -> None:
    model, sparsifier = converted(True)
    model(X).sum().backward()
    sparsifier.step()
    model(X).sum().backward()
    assert not any(p in cache._ENTRIES for p in model.parameters())


def weakref(tensor: Tensor) -> Any:
    reference: Any = StorageWeakRef  # has no types
    return reference(tensor.untyped_storage())


def test_none_waits_for_the_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    note = recompute.note

    def noting(effective: Tensor, compute: Any, arguments: Any) -> None:
        made.append(weakref(effective))
        note(effective, compute, arguments)

    monkeypatch.setattr(recompute, "note", noting)
    model, sparsifier = converted(True, None, nn_only)
    sparsifier.set_sparsity(0.5)
    loss = model(X).sum()
    assert len(made) == 2
    assert all(reference.expired() for reference in made)
    loss.backward()
    assert model[0]._parameters["weight"].grad is not None


def test_what_was_written_to_is_refused() -> None:
    model, sparsifier = converted(True, None, nn_only)
    sparsifier.set_sparsity(0.5)
    loss = model(X).sum()
    with torch.no_grad():
        model.get_parameter("3.weight").add_(1.0)
    with pytest.raises(StateError, match="a weight of shape 5x96, or its threshold"):
        loss.backward()


def test_other_tensors_are_as_safe_as_ever() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x).exp()
            y.mul_(2)
            return y

    other, _ = st3fx.convert(Writes(), torch.ones(2, 8), recompute_weights=True, verify=False)
    loss = other(torch.ones(2, 8)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_forward() -> None:
    def run(recompute_weights: bool) -> list[Tensor]:
        model, sparsifier = converted(recompute_weights, None, nn_only)
        sparsifier.set_sparsity(0.5)
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="aot_eager")
        loss = compiled(X).sum()
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    assert same(run(True), run(False))
