"""Sums and minima over the processes that hold parts of a weight (DTensor, as FSDP2 makes them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from st3fx.errors import StateError


@dataclass(frozen=True)
class Across:
    """The processes that have other sites of the same model; this one alone without a group.

    Attributes:
        group: Of one process for each stage of a pipeline, in the order of the stages.
    """

    group: dist.ProcessGroup | None = None

    def reduce(self, values: Sequence[int | float], op: dist.ReduceOp.RedOpType) -> list[float]:
        """Combine values of all stages; all get the same."""
        if self.group is None:
            return list(values)
        dtype = torch.int64 if all(isinstance(v, int) for v in values) else torch.float64
        device = dist.distributed_c10d._get_object_coll_device(self.group)
        tensor = torch.tensor(values, dtype=dtype, device=device)
        dist.all_reduce(tensor, op, group=self.group)
        result: list[float] = tensor.tolist()
        return result

    def total(self, values: Sequence[int]) -> list[int]:
        """The sums of whole numbers over all stages."""
        return [int(value) for value in self.reduce(values, dist.ReduceOp.SUM)]

    def any(self, value: bool) -> bool:
        """Whether something holds in any stage."""
        return bool(self.reduce([int(value)], dist.ReduceOp.MAX)[0])

    def gather(self, value: Any) -> list[Any]:
        """The values of all stages, in their order."""
        if self.group is None:
            return [value]
        values = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    @property
    def rank(self) -> int:
        """Which of the stages this one is."""
        return 0 if self.group is None else dist.get_rank(self.group)


ALONE = Across()
"""A process that has all sites."""


@dataclass(frozen=True)
class Spread:
    """Over which dimensions of a device mesh a weight is split; over none for a plain tensor.

    Attributes:
        mesh: The device mesh.
        dims: Its dimensions along which the parts differ; along the others they are copies.
    """

    mesh: DeviceMesh | None = None
    dims: tuple[int, ...] = ()

    def reduce(self, values: Sequence[int | float], op: dist.ReduceOp.RedOpType) -> list[float]:
        """Combine values of all processes that hold a part; all get the same."""
        if self.mesh is None or not self.dims:
            return list(values)
        dtype = torch.int64 if all(isinstance(v, int) for v in values) else torch.float64
        tensor = torch.tensor(values, dtype=dtype, device=self.mesh.device_type)
        for dim in self.dims:
            dist.all_reduce(tensor, op, group=self.mesh.get_group(dim))
        result: list[float] = tensor.tolist()
        return result

    def total(self, part: Tensor) -> Tensor:
        """The sum of all processes' parts, the same everywhere; gradients reach the own part."""
        if self.mesh is None or not self.dims:
            return part
        everything = part.detach().clone()
        for dim in self.dims:
            dist.all_reduce(everything, group=self.mesh.get_group(dim))
        return everything + (part - part.detach())

    def reduce_tensor(self, tensor: Tensor, how: str) -> None:
        """Combine a tensor in place by ``"sum"`` or ``"min"``, without waiting for it."""
        op = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN}[how]
        for dim in self.dims if self.mesh is not None else ():
            dist.all_reduce(tensor, op, group=self.mesh.get_group(dim))  # type: ignore[union-attr]


def spread_of(weight: Tensor) -> Spread:
    """How a weight is split.

    Raises:
        StateError: For a DTensor whose parts are yet to be summed.
    """
    if not isinstance(weight, DTensor):
        return Spread()
    if any(placement.is_partial() for placement in weight.placements):
        raise StateError(f"a weight of shape {tuple(weight.shape)} is a partial DTensor: reduce it")
    # What is no copy is a part: tensor parallelism under FSDP2 has shards that are no `Shard`.
    dims = tuple(i for i, p in enumerate(weight.placements) if not p.is_replicate())
    return Spread(weight.device_mesh, dims)


def local(weight: Tensor) -> Tensor:
    """The part of a weight that is here."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def local_part(tensor: Tensor, weight: Tensor) -> Tensor:
    """The part of a plain tensor that stands beside the part of ``weight``, of its shape, here."""
    if not isinstance(weight, DTensor):
        return tensor
    sizes, starts = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    for dim, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        tensor = tensor.narrow(dim, start, size)
    return tensor


def starts(weight: Tensor) -> tuple[int, ...]:
    """Where in the whole weight the part that is here begins, for each dimension."""
    if not isinstance(weight, DTensor):
        return (0,) * weight.dim()
    _, found = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    return tuple(found)


def is_cut(weight: Tensor, dims: Sequence[int], size: int, view: int) -> bool:
    """Whether a group of weights lies in more than one process; the same answer in all of them.

    Args:
        weight: Sharded or not.
        dims: Dimensions along which a group lies, of the weight seen with its first dimension as
            ``(view, -1)`` if ``view`` is above 1.
        size: Weights of a group along the one dimension; 0 for all of them.
        view: See ``dims``.
    """
    spread = spread_of(weight)
    if not isinstance(weight, DTensor) or not spread.dims:
        return False
    own = {max(0, dim - 1) for dim in dims} if view > 1 else set(dims)
    split = {
        getattr(placement, "dim", None) for placement in weight.placements if not
        placement.is_replicate()
    }  # fmt: skip
    if None not in split and not own & split:
        return False
    sizes, starts = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    cut = False
    for dim in own:
        step = weight.shape[dim] if size == 0 or (view > 1 and dim == 0) else size
        end = starts[dim] + sizes[dim]
        ends = end % step and end != weight.shape[dim]
        cut = cut or bool(sizes[dim] and (starts[dim] % step or ends))
    return bool(spread.reduce([int(cut)], dist.ReduceOp.MAX)[0])


@torch.no_grad()
def uncut(weight: Tensor, grouping: Sequence[Any]) -> Tensor:
    """The weight, gathered where a group of it lies in more than one process.

    Args:
        weight: Sharded or not.
        grouping: Of a :class:`st3fx.sparsity.granularity.Grouping`, or nothing.
    """
    if not grouping:
        return weight
    dims, _, size, view = grouping
    return whole(weight.detach()) if is_cut(weight, dims, size, view) else weight


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """``weight · mask``, split as the weight is.

    Args:
        weight: Any shape, sharded or not.
        mask: Plain, of its whole shape.
    """
    if not isinstance(weight, DTensor):
        return weight * mask
    return like(weight, weight.to_local() * local_part(mask, weight))


def like(weight: Tensor, part: Tensor) -> Tensor:
    """A tensor that is split as a weight is, from the part that is here."""
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False,
        shape=weight.shape, stride=weight.stride(),
    )  # fmt: skip


@torch.no_grad()
def set_part(tensor: Tensor, part: Tensor) -> None:
    """Give a parameter, sharded or not, the value of the part that is here."""
    if isinstance(tensor, DTensor):
        tensor.to_local().copy_(part)
    else:
        tensor.data = part


def whole(weight: Tensor) -> Tensor:
    """All of a weight, gathered if it is split."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Write a whole value into a tensor, sharded or not."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
