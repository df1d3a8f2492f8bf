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
from enum import IntEnum
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


class Rule(IntEnum):
    """What a gradient rule makes of ``g``, see ``Rule`` in ``src/latent.h``."""

    SCALE = 0
    SIGN = 1
    TAILS = 2


class Rows(NamedTuple):
    """fp32 weights of one site that are compared with thresholds.

    Attributes:
        weight: Address of the weights, in one piece of memory.
        out: Address of as many floats; 0 where nothing is written.
        size: How many.
        length: Of a row, where each has a threshold.
        thresholds: Address of these; 0 where all weights have one.
        threshold: That one.
    """

    weight: int
    out: int
    size: int
    length: int = 0
    thresholds: int = 0
    threshold: float = 0.0


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
_ROWS = np.dtype(
    [("weight", "u8"), ("out", "u8"), ("size", "i8"), ("length", "i8"), ("thresholds", "u8"),
     ("threshold", "f4")],
    align=True,
)  # fmt: skip
_GRADIENTS = np.dtype(
    [("rows", _ROWS), ("grad", "u8"), ("along", "u8"), ("factor", "f4"), ("rule", "i4")],
    align=True,
)
_PIECE = 1 << 14
"""``kPiece`` of ``src/latent.h``."""
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
    if not hasattr(library, "st3fx_scan"):  # built from an older tree: as if there were none
        return None
    pointer, size, real, threads = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_uint
    for name, result, arguments in (
        ("scan", size, (pointer, size, real, real, size, *[pointer] * 4)),
        ("soft_threshold", None, (pointer, size)),
        ("hard_threshold", None, (pointer, size)),
        ("left", None, (pointer, size, pointer)),
        ("gradient", None, (pointer,)),
        ("gather", size, (pointer, pointer)),
        ("scatter", None, (pointer, pointer, pointer)),
        ("measure", None, (pointer, size)),
        ("digest", None, (pointer, size, pointer)),
    ):
        function = getattr(library, f"st3fx_{name}")
        function.argtypes, function.restype = (*arguments, pointer, threads), result
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
    sites: Sequence[Scored], low: float, high: float, room: int, hashes: list[int] | None = None
) -> tuple[Tallies, NDArray[np.float32], NDArray[np.int32]]:
    """Tally scores around the band ``0 ≤ low ≤ score ≤ high`` and collect those in it.

    Args:
        sites: The sites.
        low: Lower end, an fp32 number.
        high: Upper end, an fp32 number.
        room: How many to collect; if there are more, some are missing.
        hashes: Gets what :func:`digest` gives of each site's memory, which is read once for both.

    Returns:
        A tally for each site; the scores found, in any order; the position of the site of each.
    """
    library = _library()
    assert library is not None
    table = np.array(sites, _SCORED)
    tallies = np.empty(len(sites), _TALLY)
    scores, owners = np.empty(room, np.float32), np.empty(room, np.int32)
    hashed = None if hashes is None else np.empty(len(sites), np.uint64)
    # A negative zero's bits are those of no magnitude.
    found = library.st3fx_scan(
        table.ctypes.data, len(table), low + 0.0, high, room,
        tallies.ctypes.data, scores.ctypes.data, owners.ctypes.data,
        None if hashed is None else hashed.ctypes.data, *_threads(),
    )  # fmt: skip
    if hashes is not None and hashed is not None:
        hashes[:] = hashed.tolist()
    kept = found if found <= room else 0
    return tallies, scores[:kept], owners[:kept]


def soft_threshold(sites: Sequence[Channels]) -> None:
    """Write all sites' effective weights by ST-3's formula; thresholds are active."""
    library = _library()
    assert library is not None
    table = np.array(sites, _CHANNELS)
    library.st3fx_soft_threshold(table.ctypes.data, len(table), *_threads())


def hard_threshold(sites: Sequence[Rows]) -> None:
    """Write all sites' effective weights: what is above its threshold, else a positive zero."""
    library = _library()
    assert library is not None
    table = np.array(sites, _ROWS)
    library.st3fx_hard_threshold(table.ctypes.data, len(table), *_threads())


def left(sites: Sequence[Rows]) -> list[int]:
    """How many weights of each site are above their thresholds."""
    library = _library()
    assert library is not None
    table, counts = np.array(sites, _ROWS), np.empty(len(sites), np.int64)
    library.st3fx_left(table.ctypes.data, len(table), counts.ctypes.data, *_threads())
    result: list[int] = counts.tolist()
    return result


def gradient(rule: Rule, rows: Rows, grad: int, *, along: int = 0, factor: float = 0.0) -> None:
    """Write the gradient of a site's latent weight, and what that of its threshold is a sum of.

    Args:
        rule: How.
        rows: The weights, and where their gradient goes.
        grad: Address of the gradient of the effective weight.
        along: Address of as many floats, for rules that have a gradient of the threshold.
        factor: Of :attr:`Rule.SCALE`, for weights that are pruned.
    """
    library = _library()
    assert library is not None
    table = np.array((tuple(rows), grad, along, factor, int(rule)), _GRADIENTS)
    library.st3fx_gradient(table.ctypes.data, *_threads())


def gather(rows: Rows) -> tuple[int, NDArray[np.int64]]:
    """Write the threshold over the magnitude of each weight that is left, in their order.

    Returns:
        How many there are, and where those of each piece begin, for :func:`scatter`.
    """
    library = _library()
    assert library is not None
    table = np.array(tuple(rows), _ROWS)
    starts = np.empty(-(-rows.size // _PIECE), np.int64)
    return library.st3fx_gather(table.ctypes.data, starts.ctypes.data, *_threads()), starts


def scatter(rows: Rows, starts: NDArray[np.int64], factors: int) -> None:
    """Write the weights that are left times their factors, which lie at an address, and zeros."""
    library = _library()
    assert library is not None
    table = np.array(tuple(rows), _ROWS)
    library.st3fx_scatter(table.ctypes.data, starts.ctypes.data, factors, *_threads())


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
