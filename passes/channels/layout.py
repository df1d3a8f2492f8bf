"""Rules of operators that move values: permutations, cuts and concatenations."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.coupling import Ids, Kept
from st3fx.passes.channels.fact import Fact, Slices


def _moved(call: Call, order: list[int | None]) -> Fact:
    """The dimensions of the first argument in another order; ``None`` is a new one of size 1."""
    x = call.x
    axes = tuple(None if dim is None else x.axes[dim] for dim in order)
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
    x, dims = call.x, call.get("dim")
    if dims is None:
        dims = range(x.rank)
    chosen = {dim % x.rank for dim in ([dims] if isinstance(dims, int) else dims)}
    gone = {dim for dim in chosen if x.shape[dim] == 1}
    return _moved(call, [dim for dim in range(x.rank) if dim not in gone])


def cat(call: Call) -> Fact:
    """Channels one behind the other."""
    nodes = [node for node in call["tensors"] if call.facts[node].shape != (0,)]
    facts = [call.facts[node] for node in nodes]
    rank = len(call.shape)
    dim = call["dim"] % rank
    axes: list[Ids | None] = list(facts[0].axes)
    for other in range(rank):
        for fact in facts[1:]:
            if other != dim:
                axes[other] = call.coupling.tie(axes[other], fact.axes[other])
    if not all(isinstance(fact.shape[dim], int) for fact in facts):
        for fact in facts:
            call.coupling.pin(fact.axes[dim], call.reason)
        axes[dim] = None
        return call.result(tuple(axes))
    parts = [_part(call, fact, dim) for fact in facts]
    axes[dim] = np.concatenate(parts)

    def change(kept: Kept) -> None:
        left = [n for n, ids in zip(nodes, parts, strict=True) if kept.count(ids)]
        call.set("tensors", left)

    call.coupling.changes.append(change)
    return call.result(tuple(axes), _joined(facts, dim, rank))


def _part(call: Call, fact: Fact, dim: int) -> Ids:
    ids = fact.axes[dim]
    return call.coupling.fixed(fact.shape[dim], call.reason) if ids is None else ids


def _joined(facts: list[Fact], dim: int, rank: int) -> Slices | None:
    parts = []
    for fact in facts:
        size = int(fact.shape[dim])
        found = fact.slices(dim, rank, size)
        unknown = Slices(dim, torch.ones(size), torch.zeros(size, dtype=torch.bool))
        parts.append(found or unknown)
    known = torch.cat([part.known for part in parts])
    values = torch.cat([part.values for part in parts])
    return Slices(dim, values, known) if bool(known.any()) else None


def cut(call: Call, places: Ids, dim: int) -> Fact:
    """Some indices of a dimension."""
    x = call.x
    axes, constant = list(x.axes), x.constant
    ids = axes[dim]
    axes[dim] = None if ids is None else ids[places]
    if constant is not None and constant.axis == dim:
        index = torch.from_numpy(places)
        constant = Slices(dim, constant.values[index], constant.known[index])
    shape = (*x.shape[:dim], len(places), *x.shape[dim + 1 :])
    return Fact(shape, tuple(axes), constant)


def slice_(call: Call) -> Fact | None:
    """``x[a:b:c]`` along one dimension."""
    x = call.x
    dim = call["dim"] % x.rank
    bounds = [call["start"], call["end"], call["step"]]
    ids, size = x.axes[dim], x.shape[dim]
    if ids is None:
        constant = x.constant
        return call.result(x.axes, None if constant and constant.axis == dim else constant)
    if any(isinstance(bound, fx.Node) for bound in bounds):
        return None
    places = np.arange(size)[slice(*bounds)]
    if bounds[2] != 1:
        call.coupling.pin(ids, call.reason)

    def change(kept: Kept) -> None:
        if bounds[2] == 1 and len(places):
            start = kept.count(ids[: places[0]])
            call.set("start", start)
            call.set("end", start + kept.count(ids[places]))

    call.coupling.changes.append(change)
    return cut(call, places, dim)


def select(call: Call) -> Fact | None:
    """One index of a dimension, which is not there any more."""
    x = call.x
    dim, index = call["dim"] % x.rank, call["index"]
    ids = x.axes[dim]
    axes = x.axes[:dim] + x.axes[dim + 1 :]
    constant = x.constant
    if constant is not None and constant.axis == dim:
        constant = None
    elif constant is not None:
        constant = constant.moved(constant.axis - (constant.axis > dim))
    if ids is not None:
        if isinstance(index, fx.Node):
            return None
        place = index % x.shape[dim]
        call.coupling.pin(ids[place : place + 1], call.reason)
        call.coupling.changes.append(lambda kept: call.set("index", kept.count(ids[:place])))
    return call.result(axes, constant)


def index_select(call: Call) -> Fact | None:
    """Channels in an order that is a tensor in the graph."""
    x, index = call.x, call.fact("index").tensor
    dim = call["dim"] % x.rank
    ids = x.axes[dim]
    if index is None or ids is None:
        return None
    places = index.numpy()
    call.pin("index")

    def change(kept: Kept) -> None:
        rank = np.cumsum(kept.of(ids)) - 1
        module = call.node.graph.owning_module
        assert module is not None
        setattr(module, call["index"].target, torch.from_numpy(rank[places[kept.of(ids[places])]]))

    call.coupling.changes.append(change)
    return cut(call, places, dim)


def split(call: Call) -> tuple[Fact, ...] | None:
    """Parts of given sizes along one dimension."""
    x = call.x
    dim = call["dim"] % x.rank
    ids = x.axes[dim]
    values = call.node.meta["val"]
    sizes = [value.shape[dim] for value in values]
    if not all(isinstance(size, int) for size in sizes):
        return None
    ends = np.cumsum(sizes)
    ranges = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def change(kept: Kept) -> None:
        if ids is not None:
            left = [kept.count(ids[places]) for places in ranges]
            call.node.target = torch.ops.aten.split_with_sizes.default
            call.node.args = (call.node.args[0], left, dim)
            call.node.kwargs = {}

    call.coupling.changes.append(change)
    return tuple(cut(call, places, dim) for places in ranges)
