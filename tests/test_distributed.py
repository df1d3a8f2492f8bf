"""DistributedDataParallel and FSDP2 around a converted model, in one process and in two."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import st3fx
from tests import moving_processes
from tests.nets import MODELS, Net
from tests.parity import require_plain, require_same, run
from tests.processes import require_success
from tests.two_processes import SCENARIOS

models = pytest.mark.parametrize(("kind", "inputs"), MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(tmp_path_factory.mktemp("group") / "store"), 1
    )
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(model: nn.Module, sparsifier: Any, x: Tensor, steps: int = 4) -> list[float]:
    """A few steps as a user writes them; returns the losses."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    torch.manual_seed(0)
    for _ in range(steps):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sparsifier.step()
        losses.append(loss.item())
    return losses


def converted(kind: type[nn.Module], x: Tensor) -> tuple[nn.Module, st3fx.Sparsifier]:
    method = st3fx.ST3(0.7, schedule=st3fx.CubicSchedule(0.0, 0.5))
    return st3fx.convert(kind(), x, method, total_steps=4)


@models
@pytest.mark.usefixtures("group")
def test_data_parallel_trains_as_the_model_alone(kind: type[nn.Module], inputs: Any) -> None:
    x = inputs()
    model, sparsifier = converted(kind, x)
    alone = copy.deepcopy(model)
    its_sparsifier = st3fx.Sparsifier(alone)
    wrapped = DistributedDataParallel(model)
    assert train(wrapped, sparsifier, x) == train(alone, its_sparsifier, x)
    assert sparsifier.thresholds == its_sparsifier.thresholds
    assert sparsifier.sparsity >= 0.7 - 1e-2
    folded = st3fx.fold(wrapped)
    assert type(folded) is kind
    require_plain(folded)
    require_same(run(alone, (x,), {}, training=False, seed=0),
                 run(folded, (x,), {}, training=False, seed=0), "fold")  # fmt: skip


# torch 2.14 says it of the dense model as well: a linear layer gives a view where inputs have a
# sequence.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@models
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.usefixtures("group")
def test_sharded_it_trains_as_the_model_alone(
    kind: type[nn.Module], inputs: Any, nested: bool
) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    x = inputs()
    model, sparsifier = converted(kind, x)
    alone = copy.deepcopy(model)
    its_sparsifier = st3fx.Sparsifier(alone)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    if nested:
        fully_shard(model.get_submodule("block" if kind is Net else "mlp"), mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert train(model, sparsifier, x) == pytest.approx(train(alone, its_sparsifier, x), rel=1e-6)
    assert sparsifier.thresholds == pytest.approx(its_sparsifier.thresholds, rel=1e-6)
    assert sparsifier.sparsity == pytest.approx(its_sparsifier.sparsity, abs=1e-3)
    expected = run(alone, (x,), {}, training=False, seed=0)
    actual = run(model, (x,), {}, training=False, seed=0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("group")
def test_averages_that_are_swapped_into_a_sharded_model() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    model: Any
    model, sparsifier = st3fx.convert(layers, x, st3fx.ST3(0.7), total_steps=4, verify=False)
    model = fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    average = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, sparsifier, x)
    model.eval()(x)
    model.train().reshard()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), average, strict=True):
            parameter.copy_(value * 1.5)
    found = model.eval()(x).detach()
    model.reshard()
    assert sparsifier.sparsity == pytest.approx(0.7, abs=0.01)
    assert torch.equal(st3fx.fold(model, inplace=True)(x), found)


@pytest.mark.slow
def test_in_two_processes(tmp_path: Path) -> None:
    """All scenarios at once: the two processes are started only once."""
    require_success("tests.two_processes", tmp_path, 2, list(SCENARIOS))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_masks_that_move_in_processes(tmp_path: Path, count: int) -> None:
    names = [name for name, _ in moving_processes.scenarios(count)]
    require_success("tests.moving_processes", tmp_path, count, names)
