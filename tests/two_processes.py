"""Scenarios that run in two processes at once; ``tests/test_distributed.py`` starts them.

Run as ``python -m tests.two_processes FOLDER RANK 2``: writes what each scenario gave, an empty
string or the traceback of its failure, into ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

import st3fx
from st3fx.errors import StateError
from st3fx.methods import DST, STR
from st3fx.sparsity import granularity
from tests.processes import everywhere, run_as_process

STEPS = 4
X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(21))
RAMP = st3fx.CubicSchedule(0.0, 0.5)
METHODS: dict[str, Any] = {
    "st3": st3fx.ST3(0.7, schedule=RAMP),
    "st3-sigma": st3fx.ST3(0.7, normalize="sigma", schedule=RAMP),
    "macs": st3fx.ST3(0.7, schedule=RAMP, budget="macs"),
    "block": st3fx.ST3(0.7, schedule=RAMP, granularity=st3fx.Block(2)),
    "nm": st3fx.ST3(schedule=RAMP, granularity=st3fx.NM(2, 4)),
    "gmp": st3fx.GMP(0.7, schedule=RAMP),
    "dst": DST(0.02),
    "str": STR(-150.0),
}


class Odd(nn.Module):
    """No dimension 0 is divisible by two; one is 1, so that a process has nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, bias=False)
        self.grouped = nn.Conv2d(7, 7, 1, groups=7)
        self.up = nn.ConvTranspose2d(7, 5, 2)
        self.fc = nn.Linear(5, 9)
        self.one = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.up(self.grouped(self.conv(x).tanh())).tanh().mean((2, 3))
        return self.one(self.fc(y).tanh())


def converted(method: str, model: nn.Module | None = None) -> tuple[nn.Module, st3fx.Sparsifier]:
    torch.manual_seed(0)
    made = Odd() if model is None else model
    return st3fx.convert(made, X, METHODS[method], total_steps=STEPS, verify=False)


def mine() -> Tensor:
    """This process's half of the batch."""
    return X.chunk(2)[dist.get_rank()]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    loss: Tensor = (model(x) - 0.5).square().mean()
    return loss


def same_everywhere(sparsifier: st3fx.Sparsifier) -> None:
    """All processes hold the same thresholds, to the last bit, and the same step."""
    state = hashlib.sha256()
    for tensor in sparsifier.state_dict()["thresholds"].values():
        state.update(tensor.numpy().tobytes())
    digests = everywhere((state.hexdigest(), sparsifier.steps))
    assert len(set(digests)) == 1, digests


@contextmanager
def no_gathering() -> Iterator[None]:
    """Inside, no sharded weight may be made whole; thresholds may, which are 1 wide but once."""
    original = DTensor.full_tensor

    def refuse(tensor: DTensor, **options: Any) -> Tensor:
        if sum(size > 1 for size in tensor.shape) > 1:
            raise AssertionError(f"a sharded tensor of shape {tuple(tensor.shape)} was gathered")
        return original(tensor, **options)

    DTensor.full_tensor = refuse  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        DTensor.full_tensor = original  # type: ignore[method-assign]


def groups_of(weight: Tensor, grouping: Any) -> list[tuple[Tensor, int]]:
    """Magnitudes of what goes together, and how many weights go with each."""
    if grouping is None:
        return [(weight.abs(), 1)]
    return [
        (part.values, part.weights) for part in granularity.scores(weight, weight.shape, grouping)
    ]


def sorted_level(sparsifier: st3fx.Sparsifier, sparsity: float) -> float:
    """The global threshold for the present weights, by sorting all of them here."""
    method: Any = sparsifier.method
    sites = sparsifier.plan.sites
    scores, costs = [], []
    for site in sites:
        weight = whole(sparsifier.model.get_parameter(site.name)).detach()
        for values, going in groups_of(weight, method.granularity.grouping(site)):
            scores.append(values.flatten() / torch.tensor(method.scale(site)))
            cost = site.cost if method.budget == "macs" else 1
            costs.append(torch.full((values.numel(),), going * cost))
    if method.budget == "macs" or method.granularity != st3fx.Unstructured():
        values, order = torch.cat(scores).sort()
        spent = torch.cat(costs)[order].cumsum(0)
        share = method.share_of_groups(sparsity)
        return float(values[int((spent >= share * int(spent[-1])).nonzero()[0])])
    values = torch.cat(scores).sort().values
    index = (len(values) - 1) * sparsity
    low, high = values[math.floor(index)], values[math.ceil(index)]
    return float(low + (high - low) * (index - math.floor(index)))


def train(model: nn.Module, sparsifier: st3fx.Sparsifier, x: Tensor, optimizer: Any = None) -> None:
    """A few steps; after each the threshold is exact and the same in all processes."""
    chosen = optimizer or torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.05)
    distributed = x is not X
    for step in range(1, STEPS + 1):
        (loss_of(model, x) + sparsifier.penalty()).backward()
        chosen.step()
        chosen.zero_grad()
        with no_gathering():
            sparsifier.step()
        if sparsifier.level is not None and not sparsifier.frozen:
            assert sparsifier.target is not None
            expected = sorted_level(sparsifier, RAMP.sparsity(step, STEPS, sparsifier.target))
            assert sparsifier.level.item() == expected, (sparsifier.level.item(), expected)
        if distributed:
            same_everywhere(sparsifier)


def as_alone(sparsifier: st3fx.Sparsifier, alone: st3fx.Sparsifier) -> None:
    """Equal to one process on the whole batch, up to the order in which gradients are summed."""
    ours, theirs = sparsifier.state_dict(), alone.state_dict()
    assert ours["step"] == theirs["step"]
    for name, expected in theirs["thresholds"].items():
        torch.testing.assert_close(ours["thresholds"][name], expected, rtol=1e-4, atol=1e-6)
    for site in alone.plan.sites:
        actual = whole(sparsifier.model.get_parameter(site.name))
        expected = alone.model.get_parameter(site.name)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def sharded(model: nn.Module, sizes: tuple[int, ...] = (2,), nested: bool = True) -> nn.Module:
    names = ("replicate", "shard")[-len(sizes) :]
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    if nested:
        fully_shard(model.get_submodule("up"), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def data_parallel(method: str) -> None:
    model, sparsifier = converted(method)
    alone = copy.deepcopy(model)
    its_sparsifier = st3fx.Sparsifier(alone)
    train(alone, its_sparsifier, X)
    train(DistributedDataParallel(model), sparsifier, mine())
    as_alone(sparsifier, its_sparsifier)


def drawn_masks(*, split: bool) -> None:
    """All processes draw the same masks, and have the same probabilities, to the last bit."""
    method = st3fx.ProbMask(0.7, schedule=RAMP)
    torch.manual_seed(0)
    model, sparsifier = st3fx.convert(Odd(), X, method, total_steps=STEPS, verify=False)
    wrapped = sharded(model) if split else DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(1, STEPS + 1):
        loss_of(wrapped, mine()).backward()
        optimizer.step()
        optimizer.zero_grad()
        with no_gathering():
            sparsifier.step()
        same_everywhere(sparsifier)
        state = hashlib.sha256()
        left = wanted = 0.0
        for parameter in sparsifier.threshold_parameters():
            own = whole(parameter).detach()
            left, wanted = left + float(own.double().sum()), wanted + own.numel()
            state.update(own.numpy().tobytes())
        for weight in sparsifier.effective_weights().values():
            state.update(weight.numpy().tobytes())
        assert len(set(everywhere(state.hexdigest()))) == 1
        share = RAMP.sparsity(step, STEPS, 0.7)
        assert 0.99 * (1 - share) * wanted <= left <= (1 - share) * wanted * (1 + 1e-6)
        assert abs(sparsifier.sparsity - share) * wanted <= 1
    with torch.no_grad():  # the relaxed masks of training
        found = [model(X), model.eval()(X)]
    outputs = [hashlib.sha256(own.numpy().tobytes()).hexdigest() for own in found]
    assert len(set(everywhere(tuple(outputs)))) == 1
    assert outputs[0] != outputs[1]


def data_parallel_frozen() -> None:
    model, sparsifier = converted("st3")
    wrapped = DistributedDataParallel(model)
    train(wrapped, sparsifier, mine())
    sparsifier.freeze()
    frozen(wrapped, sparsifier)


def frozen(model: nn.Module, sparsifier: st3fx.Sparsifier) -> None:
    """Momentum and weight decay bring nothing back."""
    zeros = {name: weight == 0 for name, weight in sparsifier.effective_weights().items()}
    assert 0.5 < sparsifier.sparsity < 0.9
    optimizer = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    train(model, sparsifier, mine(), optimizer)
    for name, weight in sparsifier.effective_weights().items():
        assert not weight[zeros[name]].any(), name
    assert len({str(value) for value in everywhere(sparsifier.sparsity)}) == 1


def shards(method: str, sizes: tuple[int, ...] = (2,)) -> None:
    model, sparsifier = converted(method)
    alone = copy.deepcopy(model)
    its_sparsifier = st3fx.Sparsifier(alone)
    train(alone, its_sparsifier, X)
    sharded(model, sizes)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    torch.testing.assert_close(sparsifier.penalty(), st3fx.Sparsifier(model).penalty())
    train(model, sparsifier, mine())
    as_alone(sparsifier, its_sparsifier)
    with torch.no_grad():
        torch.testing.assert_close(model(X), alone(X), rtol=1e-4, atol=1e-5)


def shards_and_plain_weights() -> None:
    """Some weights are split, the others are copies."""
    model, sparsifier = converted("st3")
    fully_shard(model.get_submodule("conv"), mesh=init_device_mesh("cpu", (2,)))
    kinds = {isinstance(p, DTensor) for p in model.parameters()}
    assert kinds == {True, False}
    for sparsity in (0.2, 0.8, 0.5):
        with no_gathering():
            sparsifier.set_sparsity(sparsity)
        assert sparsifier.level is not None
        assert sparsifier.level.item() == sorted_level(sparsifier, sparsity)
        same_everywhere(sparsifier)


def shards_of_any_dimension() -> None:
    """As tensor parallelism places them; and a mesh with copies of each shard, or of the whole."""
    torch.manual_seed(0)
    weights = [torch.randn(5, 3), torch.randn(7, 9, 3, 3), torch.randn(1, 4)]
    mesh = init_device_mesh("cpu", (2,))
    square = init_device_mesh("cpu", (1, 2))
    for placements in ([Shard(0)], [Shard(1)], [Replicate()]):
        for device_mesh, where in ((mesh, placements), (square, [Shard(1), *placements])):
            split = [distribute_tensor(w, device_mesh, where) for w in weights]
            for costs in (None, [5, 1, 90]):
                find, expected = (
                    st3fx.sparsity.threshold.search.GlobalThreshold() for _ in range(2)
                )
                for sparsity in (0.001, 0.3, 0.62, 0.999):
                    args = ([1.0, 0.5, 2.0], sparsity, costs)
                    with no_gathering():
                        actual = find.find(split, *args)
                    assert actual.item() == expected.find(weights, *args).item()
                    assert find.empty == expected.empty


def shards_of_tensor_parallelism() -> None:
    """FSDP2 over tensor parallelism splits a dimension twice; its shards are no ``Shard``."""
    torch.manual_seed(0)
    weight = torch.randn(8, 5)
    mesh = init_device_mesh("cpu", (2, 1))
    local = weight.chunk(2)[dist.get_rank()].clone()
    split = DTensor.from_local(
        local, mesh, [_StridedShard(0, split_factor=1), Shard(0)],
        run_check=False, shape=weight.shape, stride=weight.stride(),
    )  # fmt: skip
    for sparsity in (0.1, 0.5, 0.9):
        find, expected = (st3fx.sparsity.threshold.search.GlobalThreshold() for _ in range(2))
        actual = find.find([split], [1.0], sparsity)
        assert actual.item() == expected.find([weight], [1.0], sparsity).item()


def shards_of_equal_weights() -> None:
    """What goes of equal magnitudes does not depend on who has them."""
    torch.manual_seed(0)
    shapes = ((8, 6), (7, 9, 3, 3), (1, 4))
    weights = [torch.randint(1, 4, shape).mul(0.25) for shape in shapes]
    mesh, found = init_device_mesh("cpu", (2,)), 0
    for placement in (Shard(0), Shard(1)):
        split = [distribute_tensor(w, mesh, [placement]) for w in weights]
        for costs in (None, [5, 1, 90]):
            for sparsity in (0.2, 0.5, 0.9):
                find, expected = (
                    st3fx.sparsity.threshold.search.GlobalThreshold() for _ in range(2)
                )
                args = ([1.0, 0.3, 1.0], sparsity, costs)
                assert find.find(split, *args).item() == expected.find(weights, *args).item()
                assert find.empty == expected.empty
                assert find.ties.keys() == expected.ties.keys()
                found += len(find.ties)
                for index, threshold in find.ties.items():
                    assert torch.equal(threshold, expected.ties[index])
    assert found


def nan_in_one_shard() -> None:
    model, sparsifier = converted("st3")
    sharded(model)
    sparsifier.set_sparsity(0.5)
    if dist.get_rank() == 1:
        weight: Any = model.get_parameter("conv.weight")
        weight.to_local().detach().view(-1)[0] = math.nan
    try:
        sparsifier.set_sparsity(0.5)
    except StateError as error:
        if "NaN in conv.weight" in str(error):
            return
    raise AssertionError("the NaN was not noticed here")


def shards_frozen() -> None:
    model, sparsifier = converted("st3")
    sharded(model)
    train(model, sparsifier, mine())
    sparsifier.freeze()
    frozen(model, sparsifier)
    state = sparsifier.state_dict()
    fresh, its_sparsifier = converted("st3")
    its_sparsifier.load_state_dict(state)
    assert its_sparsifier.frozen
    for name, mask in state["masks"].items():
        assert mask.shape == fresh.get_parameter(name).shape


def learned_state(method: str) -> None:
    """State of sharded thresholds goes into a plain model and back."""
    model, sparsifier = converted(method)
    sharded(model)
    train(model, sparsifier, mine())
    state = copy.deepcopy(sparsifier.state_dict())
    for name, threshold in state["thresholds"].items():
        assert not isinstance(threshold, DTensor), name
    _, plain = converted(method)
    plain.load_state_dict(state)
    assert plain.thresholds == sparsifier.thresholds
    other, its_sparsifier = converted(method)
    sharded(other)
    its_sparsifier.load_state_dict(plain.state_dict())
    assert its_sparsifier.thresholds == sparsifier.thresholds
    torch.testing.assert_close(its_sparsifier.penalty(), plain.penalty())
    parameters = its_sparsifier.threshold_parameters()
    assert len(parameters) == 5
    assert all(isinstance(p, DTensor) and isinstance(p, nn.Parameter) for p in parameters)
    same_everywhere(its_sparsifier)


def thresholds_are_set_back() -> None:
    """A layer keeps 1 % or a little more over all shards, which are of different sizes."""
    mesh = init_device_mesh("cpu", (2,))
    for shape, most in (((101, 1), 1), ((3, 70), 2), ((1, 199), 1), ((300, 3), 9)):
        for left, first in itertools.product((most, most + 1), (True, False)):
            layer = nn.Linear(shape[1], shape[0], bias=False)
            model, sparsifier = st3fx.convert(
                layer, torch.randn(2, shape[1]), METHODS["dst"], total_steps=STEPS, verify=False
            )
            weight: Any = model.get_parameter("weight")
            with torch.no_grad():
                weight.fill_(0.01)
                weight.view(-1)[slice(left) if first else slice(-left, None)] = 5.0
                model.get_parameter("st3fx_weight_threshold").fill_(0.5)
            fully_shard(model, mesh=mesh)
            with no_gathering():
                sparsifier.step()
            expected = 0.0 if left == most else 0.5
            assert sparsifier.thresholds == {"weight": expected}, (shape, left, first)


def own_targets() -> None:
    """Sites with targets of their own are counted where they are, and so are the others."""
    found = {}
    for key in ("alone", "sharded"):
        torch.manual_seed(0)
        method = st3fx.ST3(
            0.7, schedule=RAMP, sparsity_of={"conv.*": 0.9, "up.*": 0.5, "fc.*": 0.4}
        )
        model, sparsifier = st3fx.convert(Odd(), X, method, total_steps=STEPS, verify=False)
        if key == "sharded":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        with no_gathering():
            sparsifier.set_sparsity(0.7)
            found[key] = sparsifier.thresholds
        same_everywhere(sparsifier)
    assert found["alone"] == found["sharded"]
    assert found["alone"]["grouped.weight"] == found["alone"]["one.weight"]
    assert len(set(found["alone"].values())) == 4


SCENARIOS: dict[str, Callable[[], None]] = {
    **{f"data parallel, {name}": functools.partial(data_parallel, name) for name in METHODS},
    "data parallel, drawn masks": functools.partial(drawn_masks, split=False),
    "shards, drawn masks": functools.partial(drawn_masks, split=True),
    "data parallel, frozen": data_parallel_frozen,
    **{f"shards, {name}": functools.partial(shards, name) for name in METHODS},
    "shards and copies": functools.partial(shards, "st3", (1, 2)),
    "copies of one shard": functools.partial(shards, "st3", (2, 1)),
    "copies of one shard, dst": functools.partial(shards, "dst", (2, 1)),
    "shards and plain weights": shards_and_plain_weights,
    "shards of any dimension": shards_of_any_dimension,
    "shards of tensor parallelism": shards_of_tensor_parallelism,
    "shards of equal weights": shards_of_equal_weights,
    "shards with targets of their own": own_targets,
    "nan in one shard": nan_in_one_shard,
    "shards, frozen": shards_frozen,
    "state of shards, dst": functools.partial(learned_state, "dst"),
    "state of shards, str": functools.partial(learned_state, "str"),
    "thresholds are set back": thresholds_are_set_back,
}


if __name__ == "__main__":
    run_as_process(SCENARIOS)
