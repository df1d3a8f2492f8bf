"""Compact weight files (``.st3w``): one bit per weight, and the values that are not zero.

    offset   bytes
    0        8      "ST3W", then the version as a 32-bit integer
    8        8      length of the header
    16       32     SHA-256 of the header
    48       ...    header: JSON
    ...             body: the tensors, one after another, without gaps

All integers are little-endian. The header is an object: ``tensors`` lists ``name``, ``dtype``,
``shape``, ``layout`` and ``bytes`` of each in the order of the body; ``aliases`` gives for each
further name of a tensor the one that it is stored under; ``sha256`` is that of the body. A tensor
of layout ``dense`` is its values; one of layout ``bitmask`` is a bit for each scalar in C order,
the first in the lowest bit of the first byte, 1 where the scalar is stored, and then these scalars.
A zero of either sign is left out and comes back as +0.0; all other scalars, NaN among them, come
back bit for bit. Integers have one zero. (Files of the first versions hold -0.0 as a value.)

Zeros without a sign: what multiplies by a mask leaves -0.0, which is a zero like any other.

Where a weight is written, a zero of either sign is a zero, and it is written as +0.0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st3fx.errors import ExportError, describe, few
from st3fx.files.atomic import replace_file
from st3fx.files.reading import Count, DamageError, Format, build, check_regular, parse_json
from st3fx.files.tensor_file import storable, untied

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a scalar -> integers as wide, which torch can compare and shift."""

_SIGNED = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
)  # fmt: skip
"""Types in which the sign bit alone is -0.0; in others it is another value."""


def positive_zeros(tensor: Tensor) -> Tensor:
    """A tensor in which every zero is +0.0; the given one where it has no -0.0.

    Args:
        tensor: Of any type; integers have one zero. Read by its bits, so that denormals and the
            payloads of NaN stay what they are.
    """
    if tensor.is_complex():
        parts = torch.view_as_real(tensor.detach().resolve_conj())
        negative = (tensor == 0) & parts.signbit().any(-1)
        return tensor.masked_fill(negative, 0) if negative.any() else tensor
    if tensor.dtype not in _SIGNED or not tensor.numel():
        return tensor
    words = tensor.detach().contiguous().view(_INTEGERS[tensor.dtype.itemsize])
    sign = 0x80 if tensor.dtype.itemsize == 1 else torch.iinfo(words.dtype).min
    negative = words == sign
    if not negative.any():
        return tensor
    return words.masked_fill(negative, 0).view(tensor.dtype)


SUFFIX = ".st3w"
MAGIC = b"ST3W"
VERSION = 1
_PREFIX = struct.Struct("<4sIQ32s")

FILE = Format(ExportError, "write it anew by st3fx fold --compact")
"""The limit is that of the header."""

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64,
        torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
"""Types that a file may hold, by name."""

Bytes = npt.NDArray[np.uint8]


def save_compact(state_dict: Mapping[str, Tensor], path: str | Path) -> int:
    """Write a state dict, whole or not at all.

    Args:
        state_dict: Full name -> tensor, of any device, stride and type in :data:`DTYPES`. Tied
            tensors are stored once.
        path: The file; one that is there is replaced.

    Returns:
        Bytes of the file.

    Raises:
        ExportError: For values that are not plain tensors, and when the file cannot be written.
    """
    odd = [key for key, value in state_dict.items() if not _fits(value)]
    if odd:
        raise ExportError(f"cannot store {few(odd)}: not a dense tensor with values")
    stored, aliases = untied(state_dict)
    parts = [(name, tensor, *_encode(tensor)) for name, tensor in stored.items()]
    digest = hashlib.sha256()
    for *_, blocks in parts:
        for block in blocks:
            digest.update(block.data)
    entries = [
        {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "layout": layout,
            "bytes": sum(block.size for block in blocks),
        }
        for name, tensor, layout, blocks in parts
    ]
    content = {"tensors": entries, "aliases": aliases, "sha256": digest.hexdigest()}
    header = json.dumps(content, separators=(",", ":")).encode()
    prefix = _PREFIX.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest())

    def write(file: BinaryIO) -> None:
        file.write(prefix + header)
        for *_, blocks in parts:
            for block in blocks:
                file.write(block.data)

    try:
        replace_file(Path(path), write)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    return len(prefix) + len(header) + sum(entry["bytes"] for entry in entries)  # type: ignore[misc]


def load_compact(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; tied tensors are the same tensor again.

    Every length is checked against the file before memory is taken for it.

    Raises:
        ExportError: When it is no compact file, truncated, edited, or from a newer version.
    """
    try:
        check_regular(path)
        with Path(path).open("rb") as file:
            header = _header(file, path)
            body = np.frombuffer(file.read(), np.uint8)
    except (OSError, DamageError) as error:
        FILE.fail(path, error)
    if hashlib.sha256(body.data).hexdigest() != header.sha256:
        raise ExportError(f"{path} was damaged or edited after it was written")
    state: dict[str, Tensor] = {}
    offset = 0
    try:
        _check_names(header)
        for entry in header.tensors:
            state[entry.name] = _decode(entry, body[offset : offset + entry.bytes])
            offset += entry.bytes
    except DamageError as error:
        FILE.fail(path, error)
    except (ValueError, RuntimeError) as error:
        FILE.fail(path, DamageError(describe(error)))
    return state | {key: state[name] for key, name in header.aliases.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor of a compact file.

    Attributes:
        name: Full name.
        dtype: As torch names it.
        shape: Its sizes.
        bytes: That it takes in the file.
        zeros: Scalars whose bits are all 0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    zeros: int


def scan_compact(path: str | Path) -> tuple[list[Stored], dict[str, str]]:
    """What a file holds, read in parts, so that it may be larger than the memory.

    Returns:
        Its tensors, and of tied ones the other names -> the name that they are stored under.

    Raises:
        ExportError: When it is no compact file, truncated, edited, or from a newer version.
    """
    digest = hashlib.sha256()
    try:
        check_regular(path)
        with Path(path).open("rb") as file:
            header = _header(file, path)
            _check_names(header)
            found = [_scanned(entry, file, digest) for entry in header.tensors]
    except (OSError, DamageError) as error:
        FILE.fail(path, error)
    if digest.hexdigest() != header.sha256:
        raise ExportError(f"{path} was damaged or edited after it was written")
    return found, header.aliases


_PART = 1 << 24
"""Bytes that are read at once; a multiple of every width."""


def _scanned(entry: _Entry, file: BinaryIO, digest: Any) -> Stored:
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise DamageError(f"{entry.name} has the type {entry.dtype[:40]!r}")
    count, width = math.prod(entry.shape), dtype.itemsize
    if entry.layout == "dense":
        held = 0
        if entry.bytes != count * width:
            raise DamageError(f"{entry.name} has {entry.bytes} bytes, but shape {entry.shape}")
        for part in _parts(file, entry.bytes, digest):
            held += int(np.count_nonzero(part.reshape(-1, width).any(axis=1)))
    else:
        size = -(-count // 8)
        held = -(-(entry.bytes - size) // width)
        ones = sum(int(np.bitwise_count(part).sum()) for part in _parts(file, size, digest))
        if entry.bytes != size + held * width or ones != held:
            raise DamageError(f"{entry.name} has other values than its mask says")
        for _ in _parts(file, held * width, digest):
            pass
    return Stored(entry.name, entry.dtype, entry.shape, entry.bytes, count - held)


def _parts(file: BinaryIO, size: int, digest: Any) -> Iterator[Bytes]:
    """So many bytes of a file, in parts, which the digest takes in."""
    while size > 0:
        data = file.read(min(size, _PART))
        if not data:
            raise DamageError("became shorter while it was read")
        digest.update(data)
        size -= len(data)
        yield np.frombuffer(data, np.uint8)


@dataclass(frozen=True)
class _Entry:
    """A tensor, as the header has it."""

    name: str
    dtype: str
    shape: tuple[Count, ...]
    layout: Literal["dense", "bitmask"]
    bytes: Count


@dataclass(frozen=True)
class _Header:
    """The header."""

    tensors: tuple[_Entry, ...]
    aliases: dict[str, str]
    sha256: str


def _check_names(header: _Header) -> None:
    """Fail where a tensor is there twice, or not at all."""
    names = [entry.name for entry in header.tensors]
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise DamageError(f"{twice} is there twice")
    missing = sorted(set(header.aliases.values()) - set(names))
    if missing:
        raise DamageError(f"{few(missing)} is missing")


def _header(file: BinaryIO, path: str | Path) -> _Header:
    """The header of a file that is as long as it says; the body is next to be read."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX.size)
    if prefix[:4] != MAGIC or len(prefix) < _PREFIX.size:
        raise ExportError(f"{path} is not a compact weight file")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version > VERSION:
        raise ExportError(
            f"{path} has format {version}; this version reads up to {VERSION}: upgrade st3fx"
        )
    if _PREFIX.size + length > size:
        raise ExportError(f"{path} is truncated: its header is not whole")
    if length > FILE.limit:
        raise DamageError(f"has a header of {length:,} bytes")
    text = file.read(length)
    if version < VERSION or hashlib.sha256(text).digest() != digest:
        raise ExportError(f"{path} was damaged or edited after it was written")
    header = build(parse_json(text), _Header)
    wanted = sum(entry.bytes for entry in header.tensors)
    found = size - file.tell()
    if found < wanted:
        raise ExportError(f"{path} is truncated: {found:,} of {wanted:,} bytes of weights")
    if found > wanted:
        raise ExportError(f"{path} was damaged or edited after it was written")
    return header


def _encode(tensor: Tensor) -> tuple[str, list[Bytes]]:
    """Layout and blocks of a tensor: the smaller layout of the two."""
    rows = _rows(tensor)
    flags = rows.any(axis=1) if rows.shape[1] not in _WORDS else _words(rows) != 0
    mask = np.packbits(flags, bitorder="little")
    held = int(np.count_nonzero(flags))
    if mask.size + held * rows.shape[1] < rows.size:
        return "bitmask", [mask, rows[flags].reshape(-1)]
    return "dense", [rows.reshape(-1)]


def _decode(entry: _Entry, data: Bytes) -> Tensor:
    dtype, shape = DTYPES.get(entry.dtype), entry.shape
    if dtype is None:
        raise DamageError(f"{entry.name} has the type {entry.dtype[:40]!r}")
    count, width = math.prod(shape), dtype.itemsize
    if entry.layout == "dense":
        rows = data.copy()
    else:
        size = -(-count // 8)
        if data.size < size:
            raise DamageError(f"{entry.name} has less mask than its shape needs")
        flags = np.unpackbits(data[:size], count=count, bitorder="little").astype(bool)
        if data.size != size + int(np.count_nonzero(flags)) * width:
            raise DamageError(f"{entry.name} has other values than its mask says")
        rows = np.zeros((count, width), np.uint8)
        rows[flags] = data[size:].reshape(-1, width)
    if rows.size != count * width:
        raise DamageError(f"{entry.name} has {rows.size} bytes, but shape {shape}")
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(rows.reshape(-1)).view(dtype).reshape(shape)


_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _words(rows: Bytes) -> npt.NDArray[Any]:
    """One integer for each scalar, of its own width."""
    return rows.reshape(-1).view(_WORDS[rows.shape[1]])


def _rows(tensor: Tensor) -> Bytes:
    """The bytes of each scalar: scalars × width."""
    flat = positive_zeros(tensor.detach().cpu()).contiguous().reshape(-1)
    if not flat.numel():
        return np.zeros((0, tensor.dtype.itemsize), np.uint8)
    return flat.view(torch.uint8).numpy().reshape(-1, tensor.dtype.itemsize)


def _fits(value: object) -> bool:
    return storable(value) and isinstance(value, Tensor) and value.dtype in DTYPES.values()
