"""Masks in state dicts: a bit for each weight, and a checksum."""

from __future__ import annotations

import torch
from torch import Tensor

from st3fx.errors import StateError


def packed(mask: Tensor, count: int) -> Tensor:
    """Bits in bytes, the first in the lowest, then a checksum.

    A mask of ones gives what an empty one does: bytes of ones, and no checksum.
    """
    length = -(-count // 8)
    if not mask.numel() or (not mask.is_meta and bool(mask.all())):
        return torch.full((length + _CHECKED,), 255, dtype=torch.uint8, device=mask.device)
    bits = torch.zeros(length * 8, dtype=torch.uint8, device=mask.device)
    bits[:count] = mask.reshape(-1).to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    value = (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)
    return torch.cat([value, _checksum(value)])


_CHECKED = 3
"""Bytes of a checksum."""

_AT_A_TIME = 1 << 22
"""Bytes of a mask whose checksum is summed up at once."""


def _checksum(value: Tensor) -> Tensor:
    """Differs for bytes that are an average of others, while the average of checksums is another.

    Each byte is exact in half precision, too. That of an empty mask is 255, which none of these is.
    """
    totals = torch.zeros(3, dtype=torch.int64, device=value.device)
    for start, part in enumerate(value.split(_AT_A_TIME)):
        places = torch.arange(len(part), device=value.device) + start * _AT_A_TIME
        factors = (torch.ones_like(places), places % 251 + 1, places * places % 241 + 1)
        totals += torch.stack([(part * factor).sum() for factor in factors])
    return (totals % 251).to(torch.uint8)


def unpacked(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The mask of a state dict: bits, or (of older files) booleans; empty if all are ones.

    Raises:
        StateError: If it is of another shape, or an average of different masks.
    """
    count = 1
    for size in shape:
        count *= size
    if value.dtype == torch.bool:
        if value.numel() not in (0, count):
            raise StateError(f"a mask of {tuple(value.shape)} is of another weight than {shape}")
        return value.reshape(shape).clone() if value.numel() else value.clone()
    value = checked(value, shape)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=value.device)
    bits = value.reshape(-1, 1).bitwise_and(powers).ne(0).reshape(-1)[:count]
    return (
        torch.empty(0, dtype=torch.bool, device=value.device) if bits.all() else bits.reshape(shape)
    )


def checked(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bytes of a mask without their checksum.

    Raises:
        StateError: As :func:`unpacked`.
    """
    count = 1
    for size in shape:
        count *= size
    length = -(-count // 8)
    if value.numel() not in (length, length + _CHECKED):  # older files have no checksum
        raise StateError(f"a mask of {value.numel()} bytes is of another weight than {shape}")
    whole = value.round().to(torch.uint8) if value.is_floating_point() else value
    differs, value = bool(((value - whole).abs() > _ROUNDING).any()), whole[:length]
    if differs or (len(whole) > length and not _is_checked(value, whole[length:])):
        raise StateError(
            "its mask is an average of different masks, as of models that were frozen at another "
            "time: average the entries without st3fx_ in their names, and set_sparsity() afterwards"
        )
    return value


def part_of(value: Tensor, first: int, last: int) -> Tensor:
    """Some of a mask: of the weights from one place up to before another, in row-major order.

    Args:
        value: What :func:`checked` gave.
        first: A place.
        last: The one after the last.
    """
    begin = first // 8
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    bits = value[begin : -(-last // 8)].reshape(-1, 1).bitwise_and(powers).ne(0).reshape(-1)
    return bits[first - 8 * begin : last - 8 * begin]


_ROUNDING = 0.01
"""How far the average of equal bytes may be from them."""


def _is_checked(value: Tensor, checksum: Tensor) -> bool:
    free = bool((checksum == 255).all() and (value == 255).all())
    return free or torch.equal(checksum, _checksum(value))
