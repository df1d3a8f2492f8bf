"""Zeros without a sign: what multiplies by a mask leaves -0.0, which is a zero like any other.

Where a weight is written, a zero of either sign is a zero, and it is written as +0.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
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
    words = tensor.detach().contiguous().view(_WORDS[tensor.dtype.itemsize])
    sign = 0x80 if tensor.dtype.itemsize == 1 else torch.iinfo(words.dtype).min
    negative = words == sign
    if not negative.any():
        return tensor
    return words.masked_fill(negative, 0).view(tensor.dtype)
