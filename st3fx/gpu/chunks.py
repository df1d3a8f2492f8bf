"""A table of pieces of tensors on the device, so that one launch covers all sites."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 16384
"""Scalars for one program."""


def chunk_table(tensors: Sequence[Tensor], scales: Sequence[float], costs: Sequence[int]) -> Tensor:
    """Pieces of at most :data:`CHUNK` scalars of dense fp32 tensors.

    Returns:
        int64, shape (pieces, 4): address, scalars, cost of one, and the bits of ``σ`` in fp32. Kept
        for as long as the tensors stay where they are.
    """
    places = tuple((tensor.data_ptr(), tensor.numel()) for tensor in tensors)
    return _table(places, tuple(scales), tuple(costs), tensors[0].device)


@functools.lru_cache(maxsize=8)
def _table(
    places: tuple[tuple[int, int], ...],
    scales: tuple[float, ...],
    costs: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    bits = torch.tensor(scales, dtype=torch.float32).view(torch.int32).tolist()
    rows = [
        (address + 4 * start, min(CHUNK, numel - start), cost, scale)
        for (address, numel), cost, scale in zip(places, costs, bits, strict=True)
        for start in range(0, numel, CHUNK)
    ]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4).to(device, non_blocking=True)
