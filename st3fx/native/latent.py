"""Calls into the library for a training step: counting scores, effective weights, digests.

All of it works on the memory of dense CPU tensors, on the threads of torch's own OpenMP runtime:
threads of ours would compete with those, which spin for a while after each operator.

That runtime does not outlive a fork: a child that asks for its threads waits for ever, in torch's
operators too. So from the first time that several are used, children of forks have one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from st3fx.errors import NativeError
from st3fx.native import load


class Scored(NamedTuple):
    """fp32 weights of one site in one piece of memory, and what divides their magnitudes."""

    address: int
    size: int
    scale: float


class Groups(NamedTuple):
    """How the groups of a weight lie in memory, see :mod:`st3fx.sparsity.granularity`.

    Attributes:
        extent: Weights of a row of groups.
        inner: How many floats lie from one weight of a group to the next.
        size: Weights of a group, 64 at most; 0 for single weights. A row's last may be shorter.
        kept: How many of a group are never pruned; −1 for groups of any size, each in one piece of
            memory.
    """

    extent: int = 0
    inner: int = 0
    size: int = 0
    kept: int = 0


LONGEST = 64
"""Weights of the largest group that may lie in any way."""


class Channels(NamedTuple):
    """Latent and effective fp32 weights of one site: channels one after another in memory."""

    weight: int
    out: int
    channels: int
    length: int
    threshold: float
    rescale: bool
    groups: Groups = Groups()


class Measured(NamedTuple):
    """fp32 weights of one site in one piece of memory, and room for magnitudes.

    Attributes:
        weight: Address of the weights: rows, one after another, of groups.
        out: Address of one float for each group; with ``spread`` for each weight.
        rows: How many rows.
        groups: The groups of a row.
        spread: Whether each weight gets its group's magnitude.
    """

    weight: int
    out: int
    rows: int
    groups: Groups
    spread: bool


_SCORED = np.dtype([("weights", "u8"), ("size", "i8"), ("scale", "f4")], align=True)
_GROUPS = np.dtype([("extent", "i8"), ("inner", "i8"), ("size", "i4"), ("kept", "i4")], align=True)
_CHANNELS = np.dtype(
    [("weight", "u8"), ("out", "u8"), ("channels", "i8"), ("length", "i8"), ("threshold", "f4"),
     ("rescale", "i4"), ("groups", _GROUPS)],
    align=True,
)  # fmt: skip
_MEASURED = np.dtype(
    [("weight", "u8"), ("out", "u8"), ("rows", "i8"), ("groups", _GROUPS), ("spread", "i4")],
    align=True,
)
_BYTES = np.dtype([("data", "u8"), ("size", "i8")])
_TALLY = np.dtype([("below", "i8"), ("inside", "i8"), ("largest", "f4")], align=True)

Tallies = NDArray[np.void]
"""For each site ``below``, ``inside`` and ``largest``, the largest score of all; NaN if any is."""


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = load()
    except NativeError:
        return None
    pointer, size, real, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_uint
    library.st3fx_count.argtypes = (
        pointer, size, real, real, size, pointer, pointer, pointer, pointer, threads,
    )  # fmt: skip
    library.st3fx_count.restype = size
    library.st3fx_soft_threshold.argtypes = (pointer, size, pointer, threads)
    library.st3fx_soft_threshold.restype = None
    library.st3fx_measure.argtypes = (pointer, size, pointer, threads)
    library.st3fx_measure.restype = None
    library.st3fx_digest.argtypes = (pointer, size, pointer, pointer, threads)
    library.st3fx_digest.restype = None
    return library


def available() -> bool:
    """Whether the library is there."""
    return _library() is not None


@cache
def _parallel() -> int | None:
    """The address of ``GOMP_parallel`` in the runtime that torch has loaded, if there is one."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def _threads() -> tuple[int | None, int]:
    threads = torch.get_num_threads()
    if threads > 1:
        _spare_children()
    return _parallel(), threads


@cache
def _spare_children() -> None:
    """Have children of forks work on one thread, as those of torch's data loaders do."""
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def count(
    sites: Sequence[Scored], low: float, high: float, room: int
) -> tuple[Tallies, NDArray[np.float32], NDArray[np.int32]]:
    """Tally scores around the band ``0 ≤ low ≤ score ≤ high`` and collect those in it.

    Args:
        sites: The sites.
        low: Lower end, an fp32 number.
        high: Upper end, an fp32 number.
        room: How many to collect; if there are more, some are missing.

    Returns:
        A tally for each site; the scores found, in any order; the position of the site of each.
    """
    library = _library()
    assert library is not None
    table = np.array(sites, _SCORED)
    tallies = np.empty(len(sites), _TALLY)
    scores, owners = np.empty(room, np.float32), np.empty(room, np.int32)
    # A negative zero's bits are those of no magnitude.
    found = library.st3fx_count(
        table.ctypes.data, len(table), low + 0.0, high, room,
        tallies.ctypes.data, scores.ctypes.data, owners.ctypes.data, *_threads(),
    )  # fmt: skip
    kept = found if found <= room else 0
    return tallies, scores[:kept], owners[:kept]


def soft_threshold(sites: Sequence[Channels]) -> None:
    """Write all sites' effective weights by ST-3's formula; thresholds are active."""
    library = _library()
    assert library is not None
    table = np.array(sites, _CHANNELS)
    library.st3fx_soft_threshold(table.ctypes.data, len(table), *_threads())


def measure(sites: Sequence[Measured]) -> None:
    """Write the magnitudes of all sites' groups."""
    library = _library()
    assert library is not None
    table = np.array(sites, _MEASURED)
    library.st3fx_measure(table.ctypes.data, len(table), *_threads())


def digest(ranges: Sequence[tuple[int, int]]) -> list[int]:
    """A hash of each range of memory, given as address and bytes."""
    library = _library()
    assert library is not None
    table = np.array(ranges, _BYTES)
    hashes = np.empty(len(table), np.uint64)
    library.st3fx_digest(table.ctypes.data, len(table), hashes.ctypes.data, *_threads())
    result: list[int] = hashes.tolist()
    return result
