"""Rules of pooling, reductions, normalisation over some dimensions, and resizing."""

from __future__ import annotations

from typing import Any

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Slices


def pool(call: Call) -> Fact:
    """Pooling and resizing: each channel by itself, and a constant stays what it is.

    Average pooling that counts its padding keeps zeros alone.
    """
    x, constant = call.x, call.x.constant
    spatial = len(call.get("kernel_size") or call.get("output_size") or (0, 0))
    for dim in range(x.rank - spatial, x.rank):
        call.coupling.pin(x.axes[dim], call.reason)
    axes = (*x.axes[: x.rank - spatial], *(None,) * spatial)
    if constant is not None and constant.axis >= x.rank - spatial:
        constant = None
    mixes = any(call.get("padding") or ()) and call.get("count_include_pad", False)
    if mixes or call.get("divisor_override") is not None:
        constant = zeros_of(constant)
    return call.result(axes, constant)


def zeros_of(constant: Slices | None) -> Slices | None:
    """Those constants that are zero."""
    if constant is None:
        return None
    return Slices(constant.axis, constant.values, constant.known & (constant.values == 0))


def reduce(call: Call) -> Fact:
    """Mean and extrema over some dimensions keep constants; a sum keeps zeros."""
    x = call.x
    dims = call.get("dim")
    if dims is None or dims == []:
        dims = range(x.rank)
    gone = {dim % x.rank for dim in ([dims] if isinstance(dims, int) else dims)}
    for dim in gone:
        call.coupling.pin(x.axes[dim], call.reason)
    keep = bool(call.get("keepdim", False))
    left = [dim for dim in range(x.rank) if keep or dim not in gone]
    axes = tuple(None if dim in gone else x.axes[dim] for dim in left)
    constant = x.constant
    if constant is not None:
        axis = constant.axis
        constant = constant.moved(left.index(axis)) if axis in left and axis not in gone else None
    return call.result(axes, zeros_of(constant) if call.name == "sum" else constant)


def over_dims(call: Call) -> Fact:
    """Softmax and the like: every index of one dimension is needed, and shapes stay."""
    x = call.x
    dim = call["dim"] % x.rank
    call.coupling.pin(x.axes[dim], call.reason)
    return call.result(_without(x, {dim}))


def layer_norm(call: Call) -> Fact:
    """Mean and deviation are over all indices of the last dimensions."""
    x = call.x
    dims = set(range(x.rank - len(call["normalized_shape"]), x.rank))
    for dim in dims:
        call.coupling.pin(x.axes[dim], call.reason)
    call.pin("weight")
    call.pin("bias")
    return call.result(_without(x, dims))


def _without(x: Fact, dims: set[int]) -> tuple[Any, ...]:
    return tuple(None if dim in dims else ids for dim, ids in enumerate(x.axes))


def roll(call: Call) -> Fact | None:
    """Rolled dimensions keep all of their indices."""
    x = call.x
    dims = {dim % x.rank for dim in call["dims"]} or set(range(x.rank))
    for dim in dims:
        call.coupling.pin(x.axes[dim], call.reason)
    constant = x.constant if x.constant and x.constant.axis not in dims else None
    return call.result(_without(x, dims), constant)


def size(call: Call) -> tuple[()]:
    """``x.shape[i]``: a number, which has to stay what it is."""
    call.coupling.pin(call.x.axes[call["dim"]], call.reason)
    return ()
