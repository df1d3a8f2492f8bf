"""The batch dimension: which tensors have it, and the same call with another batch size."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from torch import Tensor


def batched(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which tensors have the batch as dimension 0: all whose size there is the most common one."""
    sizes = collections.Counter(tensor.shape[0] for tensor in tensors if tensor.dim())
    if not sizes:
        return (False,) * len(tensors)
    batch = sizes.most_common(1)[0][0]
    return tuple(tensor.dim() > 0 and tensor.shape[0] == batch for tensor in tensors)


def repeated(tensors: Sequence[Tensor], which: Sequence[bool], batch: int) -> tuple[Tensor, ...]:
    """The samples again and again, until there are ``batch`` of them."""
    return tuple(
        t[torch.arange(batch) % t.shape[0]] if has else t
        for t, has in zip(tensors, which, strict=True)
    )


def random_like(
    tensors: Sequence[Tensor], which: Sequence[bool], batch: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Random values in the range of the example's: never an index that it would not take.

    Floats are normal with the example's mean and deviation, integers lie between its smallest and
    largest, and booleans are the example's own samples.
    """
    return tuple(
        _random(t, (batch, *t.shape[1:]) if has else tuple(t.shape), generator)
        for t, has in zip(tensors, which, strict=True)
    )


def _random(example: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if not example.numel() or example.dtype == torch.bool or example.is_complex():
        rows = torch.arange(shape[0]) % example.shape[0] if shape and example.numel() else ...
        return example[rows]
    if example.dtype.is_floating_point:
        values = example.double()
        spread = float(values.std(correction=0)) or 1.0
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (noise * spread + values.mean()).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)
