"""The batch dimension: which tensors have it, and the same call with another batch size."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from torch import Tensor

Dim = int | bool | None
"""Which dimension of a tensor is the batch: ``True`` says 0, ``None`` and ``False`` say none."""


def batched(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which tensors have the batch as dimension 0: all whose size there is the most common one."""
    sizes = collections.Counter(tensor.shape[0] for tensor in tensors if tensor.dim())
    if not sizes:
        return (False,) * len(tensors)
    batch = sizes.most_common(1)[0][0]
    return tuple(tensor.dim() > 0 and tensor.shape[0] == batch for tensor in tensors)


def dimension(which: Dim) -> int | None:
    """The number of the batch dimension; ``None`` where there is none."""
    if which is None or which is False:
        return None
    return 0 if which is True else which


def batch_size(tensors: Sequence[Tensor], which: Sequence[Dim]) -> int | None:
    """Samples in a call; ``None`` where no tensor has a batch."""
    pairs = zip(tensors, map(dimension, which), strict=True)
    return next((tensor.shape[dim] for tensor, dim in pairs if dim is not None), None)


def repeated(tensors: Sequence[Tensor], which: Sequence[Dim], batch: int) -> tuple[Tensor, ...]:
    """The samples again and again, until there are ``batch`` of them."""
    return tuple(_repeated(t, dimension(has), batch) for t, has in zip(tensors, which, strict=True))


def _repeated(tensor: Tensor, dim: int | None, batch: int) -> Tensor:
    if dim is None:
        return tensor
    return tensor.index_select(dim, torch.arange(batch, device=tensor.device) % tensor.shape[dim])


def random_like(
    tensors: Sequence[Tensor], which: Sequence[Dim], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Random values in the range of the example's: never an index that it would not take.

    Floats are normal with the example's mean and deviation, integers lie between its smallest and
    largest, and booleans are the example's own samples.
    """
    return tuple(
        _random(t, dimension(has), batch, generator) for t, has in zip(tensors, which, strict=True)
    )


def _random(example: Tensor, dim: int | None, batch: int, generator: torch.Generator) -> Tensor:
    if not example.numel() or example.dtype == torch.bool or example.is_complex():
        return _repeated(example, dim, batch) if example.numel() else example
    shape = [batch if axis == dim else size for axis, size in enumerate(example.shape)]
    if example.dtype.is_floating_point:
        values = example.double()
        spread = float(values.std(correction=0)) or 1.0
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * spread + values.mean()).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)
