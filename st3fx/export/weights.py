"""Writes the weights of a folded model for whoever has its class, and measures files."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from st3fx.errors import ExportError, describe, few
from st3fx.export.export_result import Size
from st3fx.files.atomic import replace_file
from st3fx.files.compact import positive_zeros, save_compact
from st3fx.files.tensor_file import to_bytes

_LEVEL = 6
_CHUNK = 1 << 22
_ALL = 1 << 28
"""Bytes up to which everything is compressed; it takes a second for some megabytes."""


def size_of_files(name: str, paths: Iterable[Path], most: int = _ALL) -> Size:
    """Measure files together, by a sample of up to ``most`` bytes of what is larger."""
    paths = list(paths)
    raw = sum(path.stat().st_size for path in paths)
    return _size(name, raw, (chunk for path in paths for chunk in _chunks(path)), most)


def size_of_tensors(name: str, state: Mapping[str, Tensor]) -> Size:
    """Measure the values alone; a tensor with two names counts once."""
    tensors = {(t.data_ptr(), t.numel()): t for t in state.values()}
    raw = sum(tensor.nbytes for tensor in tensors.values())
    return _size(name, raw, (chunk for tensor in tensors.values() for chunk in _bytes(tensor)))


Chunk = Callable[[], "bytes | memoryview"]
"""Reads some bytes, if they are asked for."""


def _size(name: str, raw: int, chunks: Iterable[Chunk], most: int = _ALL) -> Size:
    """Compress; of more than ``most`` bytes, one chunk stands for some that follow it."""
    step = -(-raw // most) or 1
    packer, taken, packed = zlib.compressobj(_LEVEL), 0, 0
    for chunk in itertools.islice(chunks, 0, None, step):
        content = chunk()
        taken += len(content)
        packed += len(packer.compress(content))
    packed += len(packer.flush())
    return Size(name, raw, packed if taken == raw else round(packed * raw / max(taken, 1)))


def _chunks(path: Path) -> Iterable[Chunk]:
    with path.open("rb") as file:
        for begin in range(0, path.stat().st_size, _CHUNK):
            yield partial(_read, file, begin)


def _read(file: BinaryIO, begin: int) -> bytes:
    file.seek(begin)
    return file.read(_CHUNK)


def _bytes(tensor: Tensor) -> Iterable[Chunk]:
    if not tensor.numel():
        return
    whole = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for begin in range(0, len(whole), _CHUNK):
        yield partial(_part, whole, begin)


def _part(whole: memoryview, begin: int) -> memoryview:
    return whole[begin : begin + _CHUNK]


def write_weights(state: Mapping[str, Any], path: Path, *, compact: bool) -> None:
    """Write a state dict, whole or not at all.

    The safetensors file has every key, tied tensors under each of their names, so that
    ``load_state_dict(load_file(path), strict=True)`` takes it. The compact file stores them once.
    Zeros of either sign are +0.0 in both.

    Args:
        state: Full name -> tensor.
        path: The file; one that is there is replaced.
        compact: Write the format of ``st3fx.files.compact``.

    Raises:
        ExportError: For values that are not tensors, and when the file cannot be written.
    """
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise ExportError(f"cannot store {few(odd)}: not a tensor (a weight file holds no pickles)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if compact:
            save_compact(state, path)
            return
        content = to_bytes({key: positive_zeros(value.detach().cpu())
                            for key, value in state.items()})  # fmt: skip
        replace_file(path, lambda file: file.write(content))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ExportError(f"cannot store the weights: {describe(error)}") from error
