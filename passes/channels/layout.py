"""Rules of operators that move values: permutations, cuts and concatenations."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from st3fx.passes.channels.call import Call, size_of
from st3fx.passes.channels.coupling import Ids, Kept
from st3fx.passes.channels.fact import Fact, Slices
from st3fx.passes.channels.names import free
from st3fx.passes.channels.operand import Operand


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
