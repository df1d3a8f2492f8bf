"""Masks that move, and pruning in cycles, in several processes at once: DDP and FSDP2.

Run as ``python -m tests.moving_processes FOLDER RANK COUNT``, which ``tests/test_distributed.py``
does: writes what each scenario gave, an empty string or the traceback of its failure, into
``FOLDER/RANK.json``.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import st3fx
from st3fx.sparsity.masks import cosine
from tests.processes import everywhere, run_as_process

STEPS = 24
GENERATOR = torch.Generator().manual_seed(21)
X, Y = torch.randn(8, 3, 6, 6, generator=GENERATOR), torch.arange(8) % 5
RAMP = st3fx.CubicSchedule(0.0, 0.6)
METHODS: dict[str, Any] = {
    "rigl": st3fx.RigL(0.8, interval=2),
    "granet": st3fx.GraNet(0.8, interval=2, schedule=RAMP),
    "granet from dense": st3fx.GraNet(0.8, interval=2, initial=0.0, schedule=RAMP),
    "blocks": st3fx.RigL(0.6, interval=2, granularity=st3fx.Block(2)),
    "acdc": st3fx.ACDC(0.8),
    "lrr": st3fx.LRR(0.8, cycles=4),
}


class Net(nn.Module):
    """No dimension 0 is divisible by two or four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3)
        self.up = nn.ConvTranspose2d(7, 5, 2)
        self.fc = nn.Linear(5, 9)
        self.out = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.up(self.conv(x).tanh()).tanh().mean((2, 3))
        return self.out(self.fc(y).tanh())


class Training(NamedTuple):
    """A converted model, what wraps it, and what trains it."""

    model: nn.Module
    wrapped: nn.Module
    driver: st3fx.Sparsifier
    optimizer: torch.optim.Optimizer
    schedule: Any


def training(method: str, wrap: str = "", model: nn.Module | None = None) -> Training:
    torch.manual_seed(0)
    if model is None:
        model, driver = st3fx.convert(Net(), X, METHODS[method], total_steps=STEPS, verify=False)
    driver, wrapped = st3fx.Sparsifier(model), model
    if wrap == "ddp":
        wrapped = DistributedDataParallel(model)
    elif wrap == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model.get_submodule("up"), mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9, weight_decay=1e-3)

    def rate(step: int) -> float:
        own = driver.method
        done = own.progress(step, STEPS) if isinstance(own, st3fx.LRR) else step / STEPS
        return 0.5 + 0.5 * math.cos(math.pi * done)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    driver.attach(optimizer)
    return Training(model, wrapped, driver, optimizer, schedule)


def mine() -> slice:
    """This process's part of the batch."""
    size = len(X) // dist.get_world_size()
    return slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)


def backward(model: nn.Module, part: slice = slice(None), share: float = 1.0) -> None:
    (share * nn.functional.cross_entropy(model(X[part]), Y[part])).backward()


def step(own: Training) -> None:
    own.optimizer.step()
    own.optimizer.zero_grad()
    own.schedule.step()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights(own: Training) -> dict[str, Tensor]:
    """The latent weights of the sites, whole."""
    names = [site.name for site in own.driver.plan.sites]
    return {name: whole(own.model.get_parameter(name)).detach().clone() for name in names}


def masks(own: Training) -> dict[str, Tensor]:
    """In full: what is left, for ``lrr`` of its effective weights."""
    if isinstance(own.driver.method, st3fx.LRR):
        return {name: weight != 0 for name, weight in own.driver.effective_weights().items()}
    found = {}
    for item in own.driver.run.bound():
        mask = item.tensors("mask")[0]
        full = torch.ones(item.site.shape, dtype=torch.bool)
        found[item.site.name] = mask.clone() if mask.numel() else full
    return found


def digest(own: Training) -> str:
    state = hashlib.sha256()
    for group in (masks(own), weights(own), own.driver.state_dict()["thresholds"]):
        for tensor in group.values():
            state.update(tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def same_everywhere(own: Training) -> None:
    """All processes have the same masks, thresholds and weights, to the last bit."""
    digests = everywhere((digest(own), own.driver.steps, own.driver.sparsity))
    assert len(set(digests)) == 1, digests


def as_alone(own: Training, alone: Training) -> None:
    """As one process with the whole batch, but for the order in which gradients are added up."""
    for name, mask in masks(alone).items():
        assert torch.equal(masks(own)[name], mask), name
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(own)[name], weight, rtol=1e-4, atol=1e-6)


def both(method: str, wrap: str) -> None:
    """Every step: the same everywhere, as one process alone, and with the sparsity of the step."""
    alone, own = training(method), training(method, wrap)
    numel, changes = own.driver.plan.numel, 0
    before = masks(own)
    for number in range(1, STEPS + 1):
        backward(alone.model)
        step(alone)
        backward(own.wrapped, mine())
        step(own)
        same_everywhere(own)
        as_alone(own, alone)
        assert own.driver.steps == number
        assert own.optimizer.param_groups[0]["lr"] == alone.optimizer.param_groups[0]["lr"]
        wanted = (own.driver.scheduled or 0.0) * numel
        slack = 4 if method == "blocks" else 1
        assert abs(own.driver.sparsity * numel - wanted) <= slack, number
        now = masks(own)
        changes += any(not torch.equal(before[name], mask) for name, mask in now.items())
        before = now
    assert changes >= 3
    assert own.driver.sparsity > 0.55
    with torch.no_grad():
        torch.testing.assert_close(own.model(X), alone.model(X), rtol=1e-4, atol=1e-5)


def grown_by_what_all_have_seen(wrap: str) -> None:
    """What comes has the largest gradients of the whole batch, not of a process's part of it."""
    own = training("rigl", wrap)
    differs = 0
    for number in range(1, 7):
        before = masks(own)
        gradients = [dense_gradients(own, part) for part in (slice(None), mine())]
        backward(own.wrapped, mine())
        step(own)
        for name, mask in masks(own).items():
            kept, went = before[name] & mask, before[name] & ~mask
            came = mask & ~before[name]
            if not came.any():
                continue
            count = int(cosine(0.3, number, 18) * int(before[name].sum()))
            assert int(came.sum()) == int(went.sum()) <= count
            rest = ~kept & ~mask
            overall, here = (found[name].abs() for found in gradients)
            assert overall[came].min() >= overall[rest].max() * (1 - 1e-5), name
            differs += bool(here[came].min() < here[rest].max())
            assert not whole(own.model.get_parameter(name)).detach()[came].any()
    assert sum(everywhere(differs))  # by its own part alone a process would have grown others


def dense_gradients(own: Training, part: slice) -> dict[str, Tensor]:
    """Of the loss by the effective weights, in a plain model."""
    effective, plain = own.driver.effective_weights(), Net()
    biases = {n: whole(p) for n, p in own.model.named_parameters() if n.endswith("bias")}
    plain.load_state_dict(biases | effective)
    backward(plain, part)
    return {name: plain.get_parameter(name).grad for name in effective}  # type: ignore[misc]


def accumulated(wrap: str) -> None:
    """Two batches for each step, of which only the second exchanges gradients."""
    alone, own = training("rigl"), training("rigl", wrap)
    part = mine()
    middle = (part.start + part.stop) // 2
    halves = (slice(part.start, middle), slice(middle, part.stop))
    for _ in range(8):
        backward(alone.model)
        step(alone)
        for last, half in enumerate(halves):
            with exchange(own.wrapped, bool(last)):
                backward(own.wrapped, half, 0.5)
        step(own)
        same_everywhere(own)
        as_alone(own, alone)


def exchange(wrapped: nn.Module, last: bool) -> Any:
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    if not isinstance(wrapped, DistributedDataParallel):
        wrapped.set_requires_gradient_sync(last)  # type: ignore[operator]
    return torch.enable_grad()


WHOLE = sharded_state.StateDictOptions(full_state_dict=True, cpu_offload=True)


def resumed(method: str) -> None:
    """A sharded training goes on bit for bit from whole state dicts, from before and after a move.

    For ``lrr`` in the middle of each cycle, with its optimizer and its schedule.
    """
    own = training(method, "fsdp")
    saved: dict[int, Any] = {}
    expected: list[str] = []
    at = (3, 4, 9, 15, 21)
    for number in range(STEPS):
        if number in at:
            states = (
                sharded_state.get_model_state_dict(own.model, options=WHOLE),
                sharded_state.get_optimizer_state_dict(own.model, own.optimizer, options=WHOLE),
            )
            saved[number] = copy.deepcopy((everywhere(states)[0], own.schedule.state_dict()))
        backward(own.wrapped, mine())
        step(own)
        expected.append(digest(own))
    for number, ((model, optimizer), schedule) in saved.items():
        other = training(method, "fsdp")
        sharded_state.set_model_state_dict(other.model, model, options=WHOLE)
        sharded_state.set_optimizer_state_dict(
            other.model, other.optimizer, optimizer, options=WHOLE
        )
        other.schedule.load_state_dict(schedule)
        assert other.driver.steps == number
        for later in range(number, STEPS):
            backward(other.wrapped, mine())
            step(other)
            assert digest(other) == expected[later], (number, later)


def infinite_in_one_shard() -> None:
    """Gradients that are no numbers in one process move nothing in any, and none waits."""
    own = training("rigl", "fsdp")
    own.driver.detach()
    before = masks(own)
    backward(own.wrapped, mine())
    weight: Any = own.model.get_parameter("conv.weight")
    if dist.get_rank() == 1:
        weight.grad.to_local().view(-1)[0] = math.inf
    own.optimizer.step()
    with torch.no_grad():
        weight.to_local().nan_to_num_(0.0, 0.0, 0.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        own.driver.step()
    assert any("gradients are not finite at step 1" in str(w.message) for w in said)
    same_everywhere(own)
    assert all(torch.equal(before[name], mask) for name, mask in masks(own).items())


def scenarios(count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    for wrap in ("ddp", "fsdp") if count == 2 else ("ddp",):
        for name in METHODS:
            yield f"{wrap}, {name}", functools.partial(both, name, wrap)
        yield f"{wrap}, grown", functools.partial(grown_by_what_all_have_seen, wrap)
        yield f"{wrap}, accumulated", functools.partial(accumulated, wrap)
    if count == 2:
        yield "infinite in one shard", infinite_in_one_shard
    for name in METHODS if count == 2 else ():
        yield f"resumed, {name}", functools.partial(resumed, name)


if __name__ == "__main__":
    run_as_process(dict(scenarios(int(sys.argv[3]))))
