"""Rules of operators that move values: permutations, cuts and concatenations.

Rules of operators that cut dimensions up and put them together: views and expansions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from st3fx.passes.channels.call import Call, size_of
from st3fx.passes.channels.fact import Fact, Ids, Kept, Slices
from st3fx.passes.channels.normalize import free
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


def _moved(call: Call, order: list[int | None]) -> Fact:
    """The dimensions of the first argument in another order; ``None`` is a new one of size 1."""
    x = call.x
    axes = [None if dim is None else x.carried(dim) for dim in order]
    constant = x.constant
    if constant is not None:
        places = [new for new, dim in enumerate(order) if dim == constant.axis]
        constant = constant.moved(places[0]) if places else None
    return call.result(axes, constant)


def permute(call: Call) -> Fact:
    """``permute``."""
    rank = call.x.rank
    return _moved(call, [dim % rank for dim in call["dims"]])


def transpose(call: Call) -> Fact:
    """``transpose`` and ``t``."""
    rank = call.x.rank
    order: list[int | None] = list(range(rank))
    if rank > 1:
        first, second = call.get("dim0", 0), call.get("dim1", rank - 1)
        order[first], order[second] = order[second], order[first]
    return _moved(call, order)


def unsqueeze(call: Call) -> Fact:
    """``unsqueeze``."""
    order: list[int | None] = list(range(call.x.rank))
    order.insert(call["dim"] % (call.x.rank + 1), None)
    return _moved(call, order)


def squeeze(call: Call) -> Fact:
    """``squeeze`` of one, some or all dimensions."""
    x = call.x
    # Unlike elsewhere, an empty list is none of them.
    dims = set() if call.get("dim") == [] else call.axes()
    gone = sorted(dim for dim in dims if x.shape[dim] == 1)
    if any(x.is_free(dim) for dim in dims.difference(gone)):

        def change(_: Kept) -> None:
            """A dimension of which one index is left is none of those that were squeezed."""
            if not gone:  # ONNX has no form of squeezing none
                call.node.replace_all_uses_with(call.node.all_input_nodes[0])
            call.node.target = torch.ops.aten.squeeze.dims
            call.node.args, call.node.kwargs = (call.node.args[0], gone), {}

        call.afterwards(change)
    return _moved(call, [dim for dim in range(x.rank) if dim not in gone])


def cat(call: Call) -> Fact | None:
    """Channels one behind the other."""
    # Tensors of a single empty dimension are left out, whatever the others are.
    operands = [operand for operand in call.several("tensors") if operand.shape != (0,)]
    types = {operand.node.meta["val"].dtype for operand in operands}
    if len(operands) < len(call["tensors"]) or len(types) > 1:
        return None  # one that goes would take its type along
    rank = len(call.shape)
    dim = call["dim"] % rank
    axes = operands[0].all_carried(dim)
    for operand in operands[1:]:
        for other, ids in enumerate(operand.all_carried(dim)):
            if other != dim:
                axes[other] = call.coupling.tie(axes[other], ids)
    if not all(isinstance(operand.shape[dim], int) for operand in operands):
        return call.result(axes)
    parts = [_part(call, operand, dim) for operand in operands]
    axes[dim] = np.concatenate(parts)

    def change(kept: Kept) -> None:
        nodes = zip(call["tensors"], parts, strict=True)
        call.rewrite("tensors", [node for node, ids in nodes if kept.count(ids)])

    call.afterwards(change)
    return call.result(axes, _joined(call, operands, dim))


def _part(call: Call, operand: Operand, dim: int) -> Ids:
    ids = operand.carried(dim)
    return call.fixed(operand.shape[dim]) if ids is None else ids


def _joined(call: Call, operands: list[Operand], dim: int) -> Slices | None:
    parts = []
    for operand in operands:
        size = int(operand.shape[dim])
        found = operand.slices(dim, operand.rank, size)
        parts.append(found or Slices.unknown(dim, size, call.dtype))
    known = torch.cat([part.known for part in parts])
    values = torch.cat([part.values for part in parts])
    return Slices(dim, values, known) if bool(known.any()) else None


def _cut(call: Call, places: Ids, dim: int) -> Fact:
    """Some indices of a dimension."""
    x = call.x
    axes, constant = x.all_carried(dim), x.constant
    ids = x.cut(dim)
    axes[dim] = None if ids is None else ids[places]
    if constant is not None and constant.axis == dim:
        index = torch.from_numpy(places)
        constant = Slices(dim, constant.values[index], constant.known[index])
    shape = (*x.shape[:dim], len(places), *x.shape[dim + 1 :])
    return Fact(shape, tuple(axes), constant)


def slice_(call: Call) -> Fact | None:
    """``x[a:b:c]`` along one dimension."""
    x = call.x
    dim = call.axis()
    bounds = [call["start"], call["end"], call["step"]]
    if not x.is_free(dim):
        constant = x.constant
        constant = None if constant and constant.axis == dim else constant
        return call.result(x.all_carried(dim), constant)
    if any(isinstance(bound, fx.Node) for bound in bounds):
        return None
    places = np.arange(x.shape[dim])[slice(*bounds)]
    found = _cut(call, places, dim)
    if bounds[2] != 1:
        x.whole(dim)
        return found
    ids = x.cut(dim)
    assert ids is not None

    def change(kept: Kept) -> None:
        if len(places):
            start = kept.count(ids[: places[0]])
            call.rewrite("start", start)
            call.rewrite("end", start + kept.count(ids[places]))

    call.afterwards(change)
    return found


def select(call: Call) -> Fact | None:
    """One index of a dimension, which is not there any more."""
    x = call.x
    dim, index = call.axis(), call["index"]
    axes = x.all_carried(dim)
    del axes[dim]
    constant = x.constant
    if constant is not None and constant.axis == dim:
        constant = None
    elif constant is not None:
        constant = constant.moved(constant.axis - (constant.axis > dim))
    ids = x.cut(dim)
    if ids is not None:
        if isinstance(index, fx.Node):
            return None
        place = index % x.shape[dim]
        call.coupling.pin(ids[place : place + 1], call.reason)
        call.afterwards(lambda kept: call.rewrite("index", kept.count(ids[:place])))
    return call.result(axes, constant)


def index_select(call: Call) -> Fact | None:
    """Channels in an order that is a tensor in the graph."""
    x, index = call.x, call.operand("index")
    dim = call.axis()
    ids = x.cut(dim)
    if index.tensor is None or ids is None or x.rank == 0:
        return None
    places = index.tensor.reshape(-1).numpy()

    def change(kept: Kept) -> None:
        """The places among what is left, as a buffer of its own."""
        rank = np.cumsum(kept.of(ids)) - 1
        module = call.node.graph.owning_module
        assert module is not None
        name = free(module, "channel_order")
        module.register_buffer(name, torch.from_numpy(rank[places[kept.of(ids[places])]]))
        with module.graph.inserting_before(call.node):
            call.rewrite("index", module.graph.get_attr(name))

    call.afterwards(change)
    return _cut(call, places, dim)


def split(call: Call) -> tuple[Fact, ...] | None:
    """Parts of given sizes along one dimension."""
    x = call.x
    dim = call.axis()
    sizes = [size_of(value.shape[dim]) for value in call.node.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        return None
    ends = np.cumsum(sizes)
    ranges = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    ids = x.cut(dim)

    def change(kept: Kept) -> None:
        if ids is not None:
            left = [kept.count(ids[places]) for places in ranges]
            call.node.target = torch.ops.aten.split_with_sizes.default
            call.node.args, call.node.kwargs = (call.node.args[0], left, dim), {}

    call.afterwards(change)
    return tuple(_cut(call, places, dim) for places in ranges)
