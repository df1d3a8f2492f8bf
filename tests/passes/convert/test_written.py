"""Forwards that write to their own parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import st3fx
from st3fx.errors import PlanError, VerificationError
from st3fx.passes.convert.observe import observe
from st3fx.passes.convert.written import ELSEWHERE
from st3fx.plan.example import Example
from tests.parity import check, require_same

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
DRIFTS = (
    "written to before it multiplies: its forward writes other values to weight in each call, "
    "where only a projection (a clamp, a norm) could be followed"
)
OUTSIDE = (
    "written to by code around it (a hook, a module above), "
    "and a threshold would meet other values in each call"
)


class Rescales(nn.Module):
    """Halves a weight in its first call in eval mode, as RWKV does for half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rescaled = nn.Linear(4, 4), False

    def forward(self, x: Tensor) -> Any:
        if not self.training and not self.rescaled:
            self.fc.weight.data.div_(2)
            self.rescaled = True
        return self.fc(x)


class Clamps(nn.Module):
    """Keeps a temperature within bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(9.0))

    def forward(self, x: Tensor) -> Any:
        self.scale.data.clamp_(max=2)
        return self.fc(x) * self.scale


@pytest.mark.parametrize("inplace", [True, False])
def test_a_weight_that_moves_is_left_out_and_stays(inplace: bool) -> None:
    model = Rescales()
    before = model.fc.weight.detach().clone()
    with pytest.raises(PlanError, match=r"\(4, 4\): written to by the forward of the model"):
        st3fx.convert(model, X, inplace=inplace)
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_no_site_is_as_it_was_and_moves_as_before(verify: bool) -> None:
    original = Clamps()
    model: Any = st3fx.convert(original, X, verify=verify)[0]
    assert model.scale.item() == original.scale.item() == 9
    assert torch.equal(model(X), original(X))
    assert model.scale.item() == 2


# --- every way to write, and what is noticed of it ---


def by_operator(weight: Any) -> None:
    with torch.no_grad():
        weight.mul_(0.5)


def through_data(weight: Any) -> None:
    weight.data.add_(1)


def by_index(weight: Any) -> None:
    weight.data[0] = 0


def by_assignment(weight: Any) -> None:
    weight.data = weight.data * 0.5


def by_set(weight: Any) -> None:
    with torch.no_grad():
        weight.set_(torch.ones(4, 4))


def by_numpy(weight: Any) -> None:
    weight.detach().numpy()[...] *= 0.5


def by_a_list(weight: Any) -> None:
    torch._foreach_mul_([weight.data], 0.5)


WAYS = (by_operator, through_data, by_index, by_assignment, by_set, by_numpy, by_a_list)


class Writer(nn.Module):
    """A module whose forward does something to the weight of a layer in it."""

    def __init__(self, write: Callable[[Any], None], mode: bool | None = None) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.write, self.mode = write, mode

    def forward(self, x: Tensor) -> Any:
        if self.mode is None or self.mode is self.training:
            self.write(self.fc.weight)
        return self.other(self.fc(x))


def parameters(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Values and memory of all parameters."""
    return {
        name: (p.detach().clone(), p.untyped_storage()._cdata, p.storage_offset(), p.stride())
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("mode", [None, True, False])
@pytest.mark.parametrize("write", WAYS)
def test_each_write_is_noticed_and_set_back(write: Any, mode: bool | None) -> None:
    model = Writer(write, mode)
    before = parameters(model)
    source = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = observe(model, (Example.of(X),), source)
    assert set(found.written) == {"fc.weight"}
    after = parameters(model)
    for name, (values, *place) in before.items():
        assert torch.equal(values, after[name][0])
        assert place == list(after[name][1:])


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("write", WAYS)
def test_the_other_layers_are_sparse_and_train_as_before(write: Any, verify: bool) -> None:
    model = Writer(write)
    before = parameters(model)
    converted, sparsifier = st3fx.convert(model, X, verify=verify)
    require_same(before, parameters(model), "the given model")
    assert [site.name for site in sparsifier.plan.sites] == ["other.weight"]
    assert "fc.weight" in {item.name for item in sparsifier.plan.skipped}
    require_same(losses(model), losses(converted), "losses")


@pytest.mark.parametrize("write", [through_data, by_assignment, by_numpy])
def test_verification_leaves_a_model_that_is_converted_in_place_as_it_was(write: Any) -> None:
    model = Writer(write)
    before = parameters(model)
    st3fx.convert(model, X, inplace=True)
    require_same(before, parameters(model), "the model")


def losses(model: nn.Module, steps: int = 4) -> list[float]:
    """Of a few steps of training; the model is another afterwards."""
    optimizer, found = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(steps):
        loss = model.train()(X).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_hook_that_writes_is_no_forward_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda layer, args: by_assignment(layer.weight))
    converted, sparsifier = st3fx.convert(model, X)
    assert [site.name for site in sparsifier.plan.sites] == ["0.weight"]
    assert {item.name: item.reason for item in sparsifier.plan.skipped} == {
        "1.weight": (
            "written to before it multiplies: by a hook, as torch.nn.utils.weight_norm does (use "
            "torch.nn.utils.parametrizations instead)"
        )
    }
    require_same(losses(model), losses(converted), "losses")


def test_what_is_read_is_not_written() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            self.norm = self.fc.weight.data.norm().detach()
            mask = torch.ones_like(self.fc.weight)
            mask.mul_(2)
            return self.fc(x) * mask[0]

    assert check(Reads(), X).sites == ["fc.weight"]


class Momentum(nn.Module):
    """A momentum encoder, updated in the forward, as in MoCo."""

    def __init__(self, *, assigns: bool) -> None:
        super().__init__()
        self.q, self.assigns = nn.Linear(4, 8), assigns
        self.k = copy.deepcopy(self.q).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            for ours, theirs in zip(self.q.parameters(), self.k.parameters(), strict=True):
                if self.assigns:
                    theirs.data = theirs.data * 0.9 + ours.data * 0.1
                else:
                    theirs.mul_(0.9).add_(ours, alpha=0.1)
            k = F.normalize(self.k(x + 0.1), dim=1)
        return F.normalize(self.q(x), dim=1) @ k.t()


@pytest.mark.parametrize("include", ["q.*", None])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("assigns", [True, False])
def test_a_momentum_encoder_follows_the_sparse_one(
    assigns: bool, verify: bool, include: str | None
) -> None:
    model = Momentum(assigns=assigns)
    start = model.k.weight.clone()
    converted, sparsifier = st3fx.convert(model, X, include=include, verify=verify)
    assert torch.equal(model.k.weight, start)
    assert torch.equal(converted.get_parameter("k.weight"), start)
    assert [site.name for site in sparsifier.plan.sites] == ["q.weight"]
    require_same(losses(copy.deepcopy(model)), losses(copy.deepcopy(converted)), "losses")

    sparsifier.set_sparsity(0.5)
    oracle = copy.deepcopy(model)
    oracle.load_state_dict(sparsifier.effective_weights(), strict=False)
    for _ in range(2):  # the encoder is an average of what multiplies
        require_same(oracle(X), converted(X), "output")


# --- layers that project their weight ---


class MaxNorm(nn.Linear):
    """As braindecode's ``LinearWithConstraint``."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.3)
        return super().forward(x)


class MaxNormInPlace(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.renorm_(2, 0, 0.3)
        return super().forward(x)


class Causal(nn.Conv1d):
    """A masked convolution."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(3, 4, 5, padding=2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[..., 2:] = 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class CausalByAssignment(Causal):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data * self.mask
        return nn.Conv1d.forward(self, x)


class Clipped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.2, 0.2)
        return super().forward(x)


SERIES = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1))
PROJECTIONS: dict[str, tuple[Callable[[], nn.Module], Tensor, type[nn.Module]]] = {
    "max norm": (lambda: MaxNorm(4, 6), X, nn.Linear),
    "max norm in place": (lambda: MaxNormInPlace(4, 6), X, nn.Linear),
    "causal": (Causal, SERIES, nn.Conv1d),
    "causal by assignment": (CausalByAssignment, SERIES, nn.Conv1d),
    "clipped": (lambda: Clipped(4, 6), X, nn.Linear),
}
projections = pytest.mark.parametrize(("make", "x", "plain"), PROJECTIONS.values(), ids=PROJECTIONS)


@projections
@pytest.mark.parametrize("verify", [True, False])
def test_a_weight_that_its_layer_projects_is_a_site_behind_that(
    make: Any, x: Tensor, plain: Any, verify: bool
) -> None:
    model = nn.Sequential(make(), nn.ReLU())
    before = parameters(model)
    converted, sparsifier = st3fx.convert(model, x, verify=verify)
    require_same(before, parameters(model), "the given model")
    (site,) = sparsifier.plan.sites
    assert (site.name, site.computed) == ("0.weight", True)

    def train(module: nn.Module) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        for _ in range(4):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
        return [p.detach().clone() for p in module.parameters()], module(x)

    require_same(train(model), train(converted), "dense training")
    sparsifier.set_sparsity(0.5)
    folded: Any = st3fx.fold(converted)
    require_same(converted.eval()(x), folded.eval()(x), "fold")
    assert type(folded[0]) is plain
    weight = sparsifier.effective_weights()["0.weight"]
    assert torch.equal(folded[0].weight, weight)
    assert 0.4 < (weight == 0).float().mean() < 1  # of a causal weight most are zero anyway


def test_the_future_stays_invisible() -> None:
    model = nn.Sequential(CausalByAssignment())
    converted, sparsifier = st3fx.convert(model, SERIES, total_steps=8)
    optimizer = torch.optim.SGD(converted.parameters(), 0.5)
    for _ in range(8):
        (converted(SERIES) - SERIES[:, :1].roll(-1, -1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
    other = SERIES.clone()
    other[..., 6:] = 9
    folded = st3fx.fold(converted)
    for module in (converted.eval(), folded.eval()):
        assert torch.equal(module(SERIES)[..., :6], module(other)[..., :6])


class Drifts(nn.Linear):
    """Its writes are no projection."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = self.weight.data * 0.9
        return super().forward(x)


class InTraining(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.weight.data = self.weight.data.clamp(-0.2, 0.2)
        return super().forward(x)


class TooLate(nn.Linear):
    """The product reads a view from before the write."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t()
        self.weight.data.clamp_(-0.2, 0.2)
        return x @ weight + self.bias


class Twice(nn.Linear):
    """A second writer, above."""

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-0.2, 0.2)
        return super().forward(x)


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = Twice(4, 4)

    def forward(self, x: Tensor) -> Any:
        self.fc.weight.data = self.fc.weight.data + 0.1
        return self.fc(x)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Drifts(4, 4), DRIFTS),
        (InTraining(4, 4), "written to in train mode alone"),
        (TooLate(4, 4), "written to before it multiplies: TooLate does more than a Linear"),
        (Above(), OUTSIDE),
    ],
    ids=["drifts", "in training", "too late", "above"],
)
def test_other_writes_leave_the_weight_dense(layer: nn.Module, reason: str, verify: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    converted, sparsifier = st3fx.convert(model, X, verify=verify)
    assert [site.name for site in sparsifier.plan.sites] == ["0.weight"]
    assert {item.reason for item in sparsifier.plan.skipped} == {reason}
    require_same(losses(model), losses(converted), "losses")


@pytest.mark.slow
def test_a_layer_that_is_left_out_stops_no_conversion() -> None:
    for make, x, _ in PROJECTIONS.values():
        first = nn.Conv1d(3, 3, 1) if x.dim() == 3 else nn.Linear(4, 4)
        choices: tuple[Any, ...] = ({"exclude": "1.*"}, {"include": "0.*"})
        for options in choices:
            plan = st3fx.convert(nn.Sequential(first, make()), x, **options)[1].plan
            assert [site.name for site in plan.sites] == ["0.weight"]


def test_a_hook_that_steps_an_optimizer_is_undone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def step(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter.sub_(0.1)

    model[0].get_parameter("weight").register_post_accumulate_grad_hook(step)
    before = parameters(model)
    assert len(st3fx.convert(model, X, inplace=True)[1].plan.sites) == 2
    require_same(before, parameters(model), "the model")


class Evil(torch.autograd.Function):
    """Writes to its weight in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.weight.data.add_(1)
        return grad @ ctx.weight.T, None


def test_a_backward_pass_that_writes_is_found() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.weight = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Any:
            return Evil.apply(self.fc(x), self.weight)

    model = Model()
    before = parameters(model)
    with pytest.raises(VerificationError, match="its backward pass writes to weight"):
        st3fx.convert(model, X, inplace=True)
    require_same(before, parameters(model), "the model")


def test_who_writes() -> None:
    model = Above()
    source = {name: p.detach().clone() for name, p in model.named_parameters()}
    written = observe(model, (Example.of(X),), source).written
    assert written == {"fc.weight": {"fc", ELSEWHERE}}
