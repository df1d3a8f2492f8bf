"""The rule of padding, of an image or of its channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.coupling import Ids, Kept
from st3fx.passes.channels.fact import Fact, Slices


def pad(call: Call) -> Fact | None:
    """Padding; new channels are constants like any other."""
    x, pads = call.x, call["pad"]
    mode, value = call.get("mode", "constant"), call["value"] or 0.0
    if any(isinstance(number, fx.Node) for number in pads):
        return None
    dims = {x.rank - 1 - n // 2: (pads[n], pads[n + 1]) for n in range(0, len(pads), 2)}
    axes, known, constant = x.all_carried(), None, x.constant
    if mode == "constant" and constant is not None and _is_padded(dims, constant.axis):
        same = constant.known & (constant.values == value)
        constant = Slices(constant.axis, constant.values, same)
    for dim, (before, after) in dims.items():
        ids = axes[dim]
        if ids is None or not (before or after):
            continue
        if mode != "constant" or known or min(before, after) < 0:
            return None  # all that the operator reads stays
        ends = [call.coupling.fresh(before), call.coupling.fresh(after)]
        axes[dim], known = np.concatenate([ends[0], ids, ends[1]]), True
        constant = _extended(call, constant, dim, (before, after), value)
        call.afterwards(_pad_change(call, dim, ends))
    if constant is not None and not known and any(dims.get(constant.axis, (0, 0))):
        constant = None
    return call.result(axes, constant)


def _is_padded(dims: dict[int, tuple[int, int]], axis: int) -> bool:
    """Whether anything but the dimension of the constants is padded."""
    return any(any(sizes) for dim, sizes in dims.items() if dim != axis)


def _extended(
    call: Call, constant: Slices | None, dim: int, sizes: tuple[int, int], value: Any
) -> Slices | None:
    if constant is not None and constant.axis != dim:
        return None
    if constant is None:
        constant = Slices.unknown(dim, int(call.x.shape[dim]), call.dtype)
    ends = [torch.full((size,), value, dtype=call.dtype) for size in sizes]
    true = [torch.ones(size, dtype=torch.bool) for size in sizes]
    values = torch.cat([ends[0], constant.values, ends[1]])
    return Slices(dim, values, torch.cat([true[0], constant.known, true[1]]))


def _pad_change(call: Call, dim: int, ends: list[Ids]) -> Any:
    def change(kept: Kept) -> None:
        pads = list(call["pad"])
        place = 2 * (call.x.rank - 1 - dim)
        pads[place : place + 2] = [kept.count(ids) for ids in ends]
        call.rewrite("pad", pads)

    return change
