"""Rules of pooling, reductions, normalisation over some dimensions, and resizing."""

from __future__ import annotations

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Slices


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
