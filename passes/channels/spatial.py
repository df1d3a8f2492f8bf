"""Rules of pooling, reductions, normalisation over some dimensions, and resizing.

The rule of padding, of an image or of its channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Ids, Kept, Slices


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


def pool(call: Call) -> Fact:
    """Pooling and resizing: each channel by itself, and a constant stays what it is.

    Average pooling that counts its padding keeps zeros alone.
    """
    x, constant = call.x, call.x.constant
    # By name, as in avg_pool2d: a kernel's size may be one number for all dimensions.
    spatial = range(x.rank - int(call.name[-2]), x.rank)
    if constant is not None and constant.axis in spatial:
        constant = None
    mixes = any(call.get("padding") or ()) and call.get("count_include_pad", False)
    if mixes or call.get("divisor_override") is not None:
        constant = zeros_of(constant)
    return call.result(x.all_carried(*spatial), constant)


def zeros_of(constant: Slices | None) -> Slices | None:
    """Those constants that are zero."""
    if constant is None:
        return None
    return Slices(constant.axis, constant.values, constant.known & (constant.values == 0))


def reduce(call: Call) -> Fact:
    """Mean and extrema over some dimensions keep constants; a sum keeps zeros."""
    x, gone = call.x, call.axes()
    keep = bool(call.get("keepdim", False))
    left = [dim for dim in range(x.rank) if keep or dim not in gone]
    carried = x.all_carried(*gone)
    constant = x.constant
    if constant is not None:
        axis = constant.axis
        constant = constant.moved(left.index(axis)) if axis in left and axis not in gone else None
    if call.name == "sum":
        constant = zeros_of(constant)
    return call.result([carried[dim] for dim in left], constant)


def over_dims(call: Call) -> Fact:
    """Softmax and the like: every index of one dimension is needed, and shapes stay."""
    return call.result(call.x.all_carried(call.axis()))


def layer_norm(call: Call) -> Fact:
    """Mean and deviation are over all indices of the last dimensions; so are weight and bias."""
    x = call.x
    return call.result(x.all_carried(*range(x.rank - len(call["normalized_shape"]), x.rank)))


def roll(call: Call) -> Fact:
    """Rolled dimensions keep all of their indices."""
    x, dims = call.x, call.axes("dims")
    constant = x.constant if x.constant and x.constant.axis not in dims else None
    return call.result(x.all_carried(*dims), constant)


def size(call: Call) -> tuple[()]:
    """``x.shape[i]``: a number, which has to stay what it is; of other axes nothing is read."""
    for dim in range(call.x.rank):
        if dim != call.axis():
            call.x.cut(dim)
    return ()
