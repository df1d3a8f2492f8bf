"""Sizes as they are and compressed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from st3fx.export.result import Size

_LEVEL = 6
_CHUNK = 1 << 22


def size_of_files(name: str, paths: Iterable[Path]) -> Size:
    """Of files together."""
    return _size(name, (chunk for path in paths for chunk in _chunks(path)))


def size_of_tensors(name: str, state: Mapping[str, Tensor]) -> Size:
    """Of the values alone; a tensor with two names counts once."""
    tensors = {(t.data_ptr(), t.numel()): t for t in state.values()}
    return _size(name, (_bytes(tensor) for tensor in tensors.values()))


def _size(name: str, chunks: Iterable[bytes]) -> Size:
    packer, raw, packed = zlib.compressobj(_LEVEL), 0, 0
    for chunk in chunks:
        raw += len(chunk)
        packed += len(packer.compress(chunk))
    return Size(name, raw, packed + len(packer.flush()))


def _chunks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
