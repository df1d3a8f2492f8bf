"""Where a tensor has real values after explicit padding with zeros."""

from __future__ import annotations

from collections.abc import Sequence

from st3fx.flops.operand import Operand, Window


def padded(x: Operand, before: Sequence[int], after: Sequence[int]) -> Window:
    """The window of ``x`` padded with zeros.

    Args:
        x: What is padded, perhaps padded already.
        before: Zeros before each of the last dimensions; negative ones cut off.
        after: Zeros behind.

    Returns:
        One pair for each of the last dimensions, in the coordinates of the padded tensor.
    """
    old = x.window or ()
    dims = max(len(before), len(old))
    before, after = ([0] * (dims - len(pads)) + list(pads) for pads in (before, after))
    sizes = x.shape[len(x.shape) - dims :]
    known = [*((0, size) for size in sizes[: dims - len(old)]), *old]
    windows = []
    for (low, high), size, first, last in zip(known, sizes, before, after, strict=True):
        whole = max(0, size + first + last)
        begin = min(max(0, low + first), whole)
        windows.append((begin, max(begin, min(whole, high + first))))
    return tuple(windows)
