"""Rules of operators that cut dimensions up and put them together: views and expansions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.coupling import Ids, Kept
from st3fx.passes.channels.fact import Fact, Slices
from st3fx.passes.channels.operand import Operand


def view(call: Call) -> Fact | None:
    """``view`` and ``reshape``: a dimension stays, is split, or is put together with others.

    Where several dimensions become one, the channels of the outermost are repeated. Where one is
    split, all that becomes one index of the outermost goes together.
    """
    x, shape = call.x, call.shape
    name = next((name for name in ("size", "shape") if name in call.parameters), None)
    if name is None:
        return None  # as another type
    axes: list[Ids | None] = [None] * len(shape)
    constant = None
    for inner, outer in blocks(x.shape, shape):
        found = _block(call, inner, outer)
        if found is None:
            continue
        source, target, ids = found
        axes[target] = ids
        if x.constant is not None and x.constant.axis == source:
            constant = _carried(x, shape, source, target)

    def change(kept: Kept) -> None:
        """Of fewer channels, memory may lie in another order: ``view`` would refuse it."""
        _resize(call, name, axes, kept)
        call.node.args, call.node.kwargs = (call.node.args[0], call[name]), {}
        call.node.target = torch.ops.aten.reshape.default

    call.afterwards(change)
    return call.result(axes, constant)


def blocks(
    before: tuple[Any, ...], after: tuple[Any, ...]
) -> Iterator[tuple[list[int], list[int]]]:
    """Dimensions of the one shape, and those of the other that have the same elements."""
    i = j = 0
    while i < len(before) and j < len(after):
        inner, outer, left, right = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            grow_left = not (isinstance(left, int) and isinstance(right, int)) or left < right
            if grow_left and i < len(before):
                left *= before[i]
                inner.append(i)
                i += 1
            elif j < len(after):
                right *= after[j]
                outer.append(j)
                j += 1
            else:
                return  # free sizes that cannot be compared
        yield inner, outer


def _block(call: Call, inner: list[int], outer: list[int]) -> tuple[int, int, Ids | None] | None:
    """The dimension that carries channels, where they go, and which they are there."""
    x, shape = call.x, call.shape
    sources = [dim for dim in inner if x.shape[dim] != 1]
    targets = [dim for dim in outer if shape[dim] != 1]
    if not sources or not targets:
        return None
    source, target = sources[0], targets[0]
    before, after = x.shape[source], shape[target]
    if not (isinstance(before, int) and isinstance(after, int) and before and after):
        return None
    if (after % before and before % after) or any(x.is_free(dim) for dim in sources[1:]):
        return None
    ids = x.carried(source)
    if ids is None or before == after:
        return source, target, ids
    if after > before:
        return source, target, np.repeat(ids, after // before)
    return source, target, call.coupling.merge(ids.reshape(after, -1))


def _carried(x: Operand, shape: tuple[Any, ...], source: int, target: int) -> Slices | None:
    assert x.constant is not None
    values, known = x.constant.values, x.constant.known
    before, after = int(x.shape[source]), int(shape[target])
    if after >= before:
        times = after // before
        return Slices(target, values.repeat_interleave(times), known.repeat_interleave(times))
    values, known = values.reshape(after, -1), known.reshape(after, -1)
    same = known.all(1) & (values == values[:, :1]).all(1)
    return Slices(target, values[:, 0], same) if bool(same.any()) else None


def _resize(call: Call, name: str, axes: list[Ids | None], kept: Kept) -> None:
    sizes = list(call[name])
    for dim, ids in enumerate(axes):
        if ids is not None and sizes[dim] != -1:
            sizes[dim] = kept.count(ids)
    call.rewrite(name, sizes)


def expand(call: Call) -> Fact:
    """``expand``: new dimensions in front, and those of size 1 repeated."""
    x, shape = call.x, call.shape
    extra = len(shape) - x.rank
    axes: list[Ids | None] = [None] * extra
    for dim, size in enumerate(x.shape):
        axes.append(x.carried(dim) if size == shape[dim + extra] else None)
    call.afterwards(lambda kept: _resize(call, "size", axes, kept))
    constant = x.constant
    if constant is not None:
        stays = x.shape[constant.axis] == shape[constant.axis + extra]
        constant = constant.moved(constant.axis + extra) if stays else None
    return call.result(axes, constant)


def pixel_shuffle(call: Call) -> Fact:
    """``r²`` channels become one; they go together. Height and width are one with them."""
    x, factor = call.x, int(call["upscale_factor"])
    dim = x.rank - 3
    axes = x.all_carried(dim + 1, dim + 2)
    ids, constant = axes[dim], x.constant
    if ids is not None:
        axes[dim] = call.coupling.merge(ids.reshape(-1, factor**2))
    if constant is None or constant.axis != dim:
        return call.result(axes)
    values, known = (t.reshape(-1, factor**2) for t in (constant.values, constant.known))
    same = (values == values[:, :1]).all(1) & known.all(1)
    return call.result(axes, Slices(dim, values[:, 0], same))
