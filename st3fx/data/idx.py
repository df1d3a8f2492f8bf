"""Reads the idx format of MNIST and its successors, compressed with gzip or not.

Two zero bytes, a byte for the type (8 is uint8), a byte for the number of dimensions, each size as
four bytes with the highest first, then the values, the last index running fastest. Source: the page
of the MNIST database by LeCun, Cortes and Burges.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from st3fx.errors import DataError


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor that a file holds.

    Args:
        path: Decompressed if it ends in ``.gz``.

    Raises:
        DataError: When the file cannot be read or is no idx file of bytes.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; get the file again") from error
    dimensions = content[3] if len(content) > 3 else 0
    start = 4 + 4 * dimensions
    if content[:3] != b"\0\0\x08" or not dimensions or len(content) < start:
        raise DataError(f"{path} is not an idx file of bytes; get the file again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content):,} bytes where its header promises {expected:,}; "
            "get the file again"
        )
    # Copied, as torch warns of memory that it must not write to.
    values = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
    return torch.from_numpy(values)
