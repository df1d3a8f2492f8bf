"""Tensor parallelism, FSDP2 over it, distributed checkpoints and pipelines, in 2 and 4 processes.

Run as ``python -m tests.split_processes FOLDER RANK COUNT``, which ``tests/test_split.py`` does:
writes what each scenario gave, an empty string or the traceback of its failure, into
``FOLDER/RANK.json``.

All processes have the same batch: FSDP2 averages equal gradients, in powers of two of them, which
is exact. So what it gives is compared bit by bit with one process; only where tensor parallelism
adds up products of several processes is the order of a sum another one.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import st3fx
from st3fx.errors import FoldError, InputError, MethodError, StateError
from st3fx.methods import DST, STR
from st3fx.methods.base import TargetMethod
from tests.processes import everywhere, run_as_process

STEPS = 4
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(STEPS, 6, 12, generator=GENERATOR)
RAMP = st3fx.CubicSchedule(0.0, 0.5)
METHODS: dict[str, Any] = {
    "st3": st3fx.ST3(0.7, schedule=RAMP),
    "sigma by macs": st3fx.ST3(0.7, normalize="sigma", schedule=RAMP, budget="macs"),
    "own": st3fx.ST3(0.7, schedule=RAMP, sparsity_of={"*up.*": 0.9}),
    "gmp": st3fx.GMP(0.7, schedule=RAMP),
    "feather": st3fx.Feather(0.7, schedule=RAMP),
    "blocks": st3fx.ST3(0.7, schedule=RAMP, granularity=st3fx.Block(4)),
    "nm": st3fx.ST3(schedule=RAMP, granularity=st3fx.NM(2, 4)),
    "channels": st3fx.GMP(0.4, schedule=RAMP, granularity=st3fx.Channels()),
    "dst": DST(0.02),
    "dst, channels": DST(0.02, granularity=st3fx.Channels()),
    "str": STR(-150.0),
    "probmask": st3fx.ProbMask(0.7, schedule=RAMP),
    "rigl": st3fx.RigL(0.8, interval=1),
    "granet": st3fx.GraNet(0.8, interval=1, schedule=RAMP),
    "acdc": st3fx.ACDC(0.8),
    "lrr": st3fx.LRR(0.8, cycles=2),
}
PLAN: dict[str, Any] = {
    "a.up": ColwiseParallel(), "a.down": RowwiseParallel(),
    "b.up": ColwiseParallel(), "b.down": RowwiseParallel(),
}  # fmt: skip


class Part(nn.Module):
    """Its inner width, in two or four parts, is no multiple of four."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Any:
        return self.down(self.up(x).tanh())


class Net(nn.Module):
    """Two parts that tensor parallelism splits, and a head that it leaves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Part(), Part()
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x) + x))


class Training(NamedTuple):
    """A converted model, what drives it, and its optimizer."""

    model: nn.Module
    driver: st3fx.Sparsifier
    optimizer: torch.optim.Optimizer


def ties(model: nn.Module) -> None:
    """A few magnitudes for all weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randint(1, 4, weight.shape, generator=generator) * 0.1)


def training(
    method: str,
    kind: str = "",
    mesh: DeviceMesh | None = None,
    change: Any = None,
    **options: Any,
) -> Training:
    torch.manual_seed(0)
    net = Net()
    if change is not None:
        change(net)
    options = {"total_steps": STEPS, "verify": False} | options
    model, driver = st3fx.convert(net, X[0], METHODS[method], **options)
    if kind:
        split(model, kind, mesh)
    # The gathering of torch's foreach kernels knows no mixture of split and plain parameters.
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, foreach=False)
    return Training(model, driver, optimizer)


def split(model: nn.Module, kind: str, mesh: DeviceMesh | None = None) -> None:
    count = dist.get_world_size()
    both = ("rows", "parts")
    if kind == "tp":
        parallelize_module(model, init_device_mesh("cpu", (count,)), PLAN)
        return
    if kind == "2d":
        square = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=both)
        parallelize_module(model, square["parts"], PLAN)
        mesh = square["rows"]
    elif kind == "hsdp":
        mesh = init_device_mesh("cpu", (2, count // 2), mesh_dim_names=both)
    mesh = mesh or init_device_mesh("cpu", (count,))
    fully_shard(model.get_submodule("a"), mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(model: nn.Module) -> None:
    """After a forward alone FSDP2 holds whole copies."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def step(own: Training, number: int) -> None:
    loss = (own.model(X[number]) - 0.5).square().mean() + own.driver.penalty()
    loss.backward()
    own.optimizer.step()
    own.optimizer.zero_grad()
    own.driver.step()


def found(own: Training) -> dict[str, Tensor]:
    """Latent and effective weights, and thresholds; whole."""
    reshard(own.model)
    state = own.driver.state_dict()
    return {
        **{name: whole(p).detach().clone() for name, p in own.model.named_parameters()},
        **{f"{name} ": weight for name, weight in own.driver.effective_weights().items()},
        **{f"{name} threshold": value for name, value in state["thresholds"].items()},
        "step": torch.tensor(own.driver.steps),
    }


def digest(state: dict[str, Tensor]) -> str:
    own = hashlib.sha256()
    for value in state.values():
        own.update(value.contiguous().numpy().tobytes())
    return own.hexdigest()


def require_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    odd = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not odd, odd


def require_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same masks; values but for the order of a sum."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)
        if name.endswith(" "):
            assert torch.equal(actual[name] != 0, value != 0), name


def as_alone(method: str, kind: str, **options: Any) -> None:
    """Equal weights have equal thresholds, masks and effective weights; and they train the same."""
    own, alone = training(method, kind, **options), training(method)
    require_equal(found(own), found(alone))
    if isinstance(own.driver.method, TargetMethod):
        target = 0.5 if method == "nm" else 0.6
        for driver in (own.driver, alone.driver):
            driver.set_sparsity(target)
        require_equal(found(own), found(alone))
        assert own.driver.sparsity == alone.driver.sparsity > 0.3
        with torch.no_grad():
            actual, expected = own.model(X[0]), alone.model(X[0])
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
        reshard(own.model)
        for driver in (own.driver, alone.driver):
            driver.set_sparsity(None)
    compare = require_equal if kind in ("fsdp", "hsdp") else require_near
    steps(own, range(STEPS))
    steps(alone, range(STEPS))
    state = found(own)
    compare(state, found(alone))
    assert len(set(everywhere(digest(state)))) == 1


def folded(method: str, kind: str, *, frozen: bool = False) -> None:
    """From a model that has just run: whole on the first process, and equal to one process'."""
    own, alone = training(method, kind), training(method)
    for driver in (own.driver, alone.driver):
        if isinstance(driver.method, TargetMethod):
            driver.set_sparsity(driver.method.target)
        if frozen:
            driver.freeze()
    with torch.no_grad():
        output = own.model.eval()(X[0])
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    plain = st3fx.fold(own.model, inplace=kind != "tp")
    state = get_model_state_dict(plain, options=options)
    expected = st3fx.fold(alone.model).state_dict()
    if dist.get_rank():
        assert not state
        return
    assert state.keys() == expected.keys()
    net = Net().eval()
    net.load_state_dict(state)
    require_equal(dict(net.state_dict()), expected)
    torch.testing.assert_close(net(X[0]), output, rtol=1e-4, atol=1e-6)


def refused() -> None:
    """What cannot be right is one line."""
    model = training("st3").model
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    require_error(FoldError, "give inplace=True", lambda: st3fx.fold(model))
    plain = Net()
    split(plain, "tp")
    again = "convert the model before fully_shard or parallelize_module"
    require_error(InputError, again, lambda: st3fx.convert(plain, X[0]))


def tie_that_is_split() -> None:
    """A weight under two names, each of which becomes a parameter of its own."""
    net = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    net[2].weight = net[0].weight
    model, driver = st3fx.convert(net, X[0], METHODS["st3"], total_steps=STEPS, verify=False)
    driver.set_sparsity(0.5)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    require_error(StateError, "each was split by itself", driver.step)


def require_error(kind: type[Exception], text: str, call: Callable[[], Any]) -> None:
    said = "nothing"
    try:
        call()
    except kind as error:  # not by pytest.raises, whose failure is none of `Exception`
        said = str(error)
    assert text in said


def checkpoints(method: str, *, frozen: bool = False, tied: bool = False) -> None:
    """Saved by four processes, loaded by two and by one, and the other way: the same steps."""
    pair, folder = dist.new_group([0, 1]), Path(sys.argv[1]) / f"{method}{frozen}{tied}"
    four, two = DeviceMesh("cpu", list(range(4))), DeviceMesh("cpu", [0, 1])
    own = training(method, "fsdp", four, ties if tied else None)
    if tied:
        own.driver.set_sparsity(0.5)
        values = own.driver.state_dict()["thresholds"].values()
        assert any(value.dim() for value in values)  # ties are split
    else:
        steps(own, range(2))
    if frozen:
        own.driver.freeze()
    save(own, folder / "four")
    saved = own.driver.state_dict()
    steps(own, range(2, STEPS))
    expected = found(own)

    def goes_on(other: Training, where: str, then: str = "", **options: Any) -> None:
        load(other, folder / where, **options)
        state = other.driver.state_dict()
        assert {**state, "thresholds": {}, "masks": {}} == {**saved, "thresholds": {}, "masks": {}}
        require_equal(state["masks"], saved["masks"])
        require_equal(state["thresholds"], saved["thresholds"])
        if then:
            save(other, folder / then, **options)
        steps(other, range(2, STEPS))
        require_equal(found(other), expected)

    if dist.get_rank() < 2:
        goes_on(training(method, "fsdp", two), "four", "two", process_group=pair)
    dist.barrier()
    if dist.get_rank() == 0:
        goes_on(training(method), "four", no_dist=True)
        goes_on(training(method), "two", "one", no_dist=True)
    dist.barrier()
    goes_on(training(method, "fsdp", four), "one")


def steps(own: Training, numbers: range) -> None:
    for number in numbers:
        step(own, number)


def save(own: Training, folder: Path, **options: Any) -> None:
    model, optimizer = get_state_dict(own.model, own.optimizer)
    dcp_save({"model": model, "optimizer": optimizer}, checkpoint_id=folder, **options)


def load(own: Training, folder: Path, **options: Any) -> None:
    model, optimizer = get_state_dict(own.model, own.optimizer)
    dcp_load({"model": model, "optimizer": optimizer}, checkpoint_id=folder, **options)
    set_state_dict(own.model, own.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def frozen_without_masks() -> None:
    """What a checkpoint of the sparsifier alone would lose is said."""
    own, other = training("st3"), training("st3")
    own.driver.set_sparsity(0.5)
    own.driver.freeze()
    state = own.driver.state_dict() | {"masks": {}}
    wanted = "get_model_state_dict"
    require_error(StateError, wanted, lambda: other.driver.load_state_dict(state))


class Stages(nn.Module):
    """A model in two stages of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.s0 = Part()
        self.s1 = nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 12))

    def forward(self, x: Tensor) -> Any:
        return self.s1(self.s0(x))


def some_zeros(model: nn.Module) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)


def pipeline(method: str, change: Any = None) -> None:
    """Each process converts its stage; thresholds are those of the whole model in one process."""
    rank, y = dist.get_rank(), X[1]
    torch.manual_seed(0)
    net = Stages()
    if change is not None:
        change(net)
    options: Any = {"total_steps": STEPS, "verify": False}
    alone, its_driver = st3fx.convert(net, X[0], METHODS[method], **options)
    stage = net.get_submodule(f"s{rank}")
    model, driver = st3fx.convert(stage, X[0], METHODS[method], group=dist.group.WORLD, **options)
    optimizers = [torch.optim.SGD(own.parameters(), 0.1) for own in (model, alone)]
    for of, optimizer in zip((driver, its_driver), optimizers, strict=True):
        of.attach(optimizer)
        of.set_sparsity(0.5)
    require_stage(driver, its_driver)
    assert driver.level is not None
    for of in (driver, its_driver):
        of.set_sparsity(None)
    schedule = ScheduleGPipe(
        PipelineStage(model, rank, 2, torch.device("cpu")), 2,
        loss_fn=lambda output, target: (output - target).square().mean(),
    )  # fmt: skip
    for _ in range(STEPS):
        if rank == 0:
            schedule.step(X[0])
        else:
            schedule.step(target=y)
        for x, target in zip(X[0].chunk(2), y.chunk(2), strict=True):
            ((alone(x) - target).square().mean() / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        require_stage(driver, its_driver)
    expected = st3fx.fold(alone).state_dict()
    for name, value in st3fx.fold(model).state_dict().items():
        assert torch.equal(value, expected[f"s{rank}.{name}"]), name


def require_stage(driver: st3fx.Sparsifier, alone: st3fx.Sparsifier) -> None:
    """The thresholds and effective weights of this process's stage in the whole model."""
    assert str(driver.level) == str(alone.level)
    prefix = f"s{dist.get_rank()}."
    thresholds, weights = alone.state_dict()["thresholds"], alone.effective_weights()
    for name, value in driver.state_dict()["thresholds"].items():
        assert torch.equal(value, thresholds[prefix + name]), name
    for name, value in driver.effective_weights().items():
        assert torch.equal(value, weights[prefix + name]), name


def pipeline_refused() -> None:
    def convert(name: str) -> Any:
        return st3fx.convert(
            Part(), X[0], METHODS[name], total_steps=STEPS, verify=False, group=dist.group.WORLD
        )

    for name, text in (("rigl", "decides from all weights"), ("probmask", "decides from all"),
                       ("own", "leave sparsity_of out")):  # fmt: skip
        require_error(MethodError, text, functools.partial(convert, name))
    _, driver = convert("st3")
    model, _ = convert("st3")
    with torch.no_grad():
        if dist.get_rank():
            next(model.parameters()).fill_(torch.nan)
    sparsifier = st3fx.Sparsifier(model)
    require_error(StateError, "NaN", lambda: sparsifier.set_sparsity(0.5))
    driver.group = None  # the whole model again: nobody is waited for
    if dist.get_rank():
        driver.set_sparsity(0.5)


def scenarios(count: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """By the number of processes; few where there are four, which are slower."""
    if count == 2:
        for name in METHODS:
            yield f"tp, {name}", functools.partial(as_alone, name, "tp")
        anew = functools.partial(as_alone, "st3", "tp", recompute_weights=True)
        yield "tp, recomputed", anew
        for name in ("channels", "blocks", "dst, channels"):
            yield f"fsdp, {name}", functools.partial(as_alone, name, "fsdp")
        for name in ("st3", "channels", "probmask", "rigl", "dst"):
            for kind in ("tp", "fsdp"):
                yield f"folded, {kind}, {name}", functools.partial(folded, name, kind)
        yield "folded, frozen", functools.partial(folded, "st3", "tp", frozen=True)
        yield "refused", refused
        yield "a tie that is split", tie_that_is_split
        yield "frozen without masks", frozen_without_masks
        yield "pipeline, lrr", functools.partial(pipeline, "lrr")
        for name in ("st3", "sigma by macs", "blocks", "nm"):
            yield f"pipeline, {name}", functools.partial(pipeline, name)
            yield f"pipeline, {name}, ties", functools.partial(pipeline, name, ties)
        yield "pipeline, zeros", functools.partial(pipeline, "st3", some_zeros)
        yield "pipeline, refused", pipeline_refused
        return
    for kind, name in (("2d", "st3"), ("2d", "dst"), ("2d", "rigl"), ("tp", "nm"),
                       ("fsdp", "st3"), ("hsdp", "st3")):  # fmt: skip
        yield f"{kind}, {name}", functools.partial(as_alone, name, kind)
    yield "folded, 2d", functools.partial(folded, "st3", "2d")
    for name in ("dst", "rigl"):
        yield f"checkpoints, {name}", functools.partial(checkpoints, name)
    yield "checkpoints, frozen", functools.partial(checkpoints, "st3", frozen=True)
    yield "checkpoints, ties", functools.partial(checkpoints, "gmp", tied=True)


if __name__ == "__main__":
    run_as_process(dict(scenarios(int(sys.argv[3]))))
