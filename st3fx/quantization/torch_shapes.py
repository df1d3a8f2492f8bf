"""What ONNX's operators on shapes and places compute, by torch's: see ``torch_ops``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from onnx import helper
from torch import Tensor
from torch.nn import functional as F

Many = Sequence[int]


def together(*tensors: Tensor) -> list[Tensor]:
    """Operands of one operator on one device: numbers from the CPU follow the others."""
    device = next((t.device for t in tensors if t.device.type != "cpu"), tensors[0].device)
    return [tensor.to(device) for tensor in tensors]


def numbers(values: Tensor | None) -> list[int]:
    """Whole numbers of a tensor; none of ``None``."""
    return [] if values is None else [int(value) for value in values.tolist()]


def padded(x: Tensor, before: Many, after: Many, value: float) -> Tensor:
    """Pad the last dimensions."""
    sides = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return F.pad(x, sides, value=value)


def require(held: bool, what: str) -> None:
    """Refuse what torch does not compute.

    Raises:
        NotImplementedError: Naming it, unless ``held``.
    """
    if not held:
        raise NotImplementedError(what)


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """``Flatten``."""
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    """``Reshape``."""
    sizes = numbers(shape)
    if not allowzero:
        sizes = [size or x.shape[place] for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def transpose(x: Tensor, *, perm: Many | None = None) -> Tensor:
    """``Transpose``."""
    return x.permute(tuple(perm) if perm else tuple(reversed(range(x.dim()))))


def concat(*values: Tensor, axis: int) -> Tensor:
    """``Concat``."""
    return torch.cat(together(*values), axis)


def split(
    x: Tensor, sizes: Tensor | None = None, *, axis: int = 0, num_outputs: int = 0
) -> tuple[Tensor, ...]:
    """``Split``."""
    if sizes is not None:
        return tuple(x.split(numbers(sizes), axis))
    return tuple(x.split(-(-x.shape[axis] // num_outputs), axis))


def slice_(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """``Slice``; a negative step takes the places one by one."""
    begins, stops = numbers(starts), numbers(ends)
    dims = numbers(axes) if axes is not None else list(range(len(begins)))
    strides = numbers(steps) if steps is not None else [1] * len(begins)
    for begin, stop, dim, step in zip(begins, stops, dims, strides, strict=True):
        places = range(x.shape[dim])[begin:stop:step]
        if step == 1:
            x = x.narrow(dim, places.start if len(places) else 0, len(places))
        else:
            x = x.index_select(dim, torch.tensor(list(places), device=x.device))
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """``Squeeze``."""
    return x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes)))


def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """``Unsqueeze``."""
    rank = x.dim() + axes.numel()
    for dim in sorted(axis % rank for axis in numbers(axes)):
        x = x.unsqueeze(dim)
    return x


def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """``Gather``."""
    axis %= x.dim()
    x, indices = together(x, indices)
    places = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, places.reshape(-1)).reshape(shape)


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """``GatherElements``."""
    x, indices = together(x, indices)
    return x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """``GatherND``."""
    require(not batch_dims, "GatherND with batch_dims")
    x, indices = together(x, indices)
    return x[tuple(indices.unbind(-1))]


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """``ScatterND``."""
    require(reduction == "none", f"ScatterND with reduction {reduction}")
    x, indices, updates = together(x, indices, updates)
    return x.index_put(tuple(indices.unbind(-1)), updates)


def shape_(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """``Shape``."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def pad(
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """``Pad``."""
    sizes, rank = numbers(pads), x.dim()
    dims = [dim % rank for dim in numbers(axes)] if axes is not None else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for place, dim in enumerate(dims):
        before[dim], after[dim] = sizes[place], sizes[place + len(dims)]
    if mode == "constant":
        return padded(x, before, after, 0.0 if value is None else float(value))
    require(not any(before[:2] + after[:2]), f"Pad in mode {mode} of channels")
    sides = [n for pair in zip(before[:1:-1], after[:1:-1], strict=True) for n in pair]
    return F.pad(x, sides, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """``Tile``."""
    return x.tile(numbers(repeats))


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    """``ConstantOfShape``."""
    filler = torch.zeros(1) if value is None else value
    return filler.reshape(()).expand(numbers(shape)).clone()


def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """``Range``."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    """``Expand``."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(numbers(shape))))


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """``DepthToSpace``."""
    require(mode == "CRD", f"DepthToSpace in mode {mode}")
    return F.pixel_shuffle(x, blocksize)


def cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """``Cast``."""
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(to))).dtype)
