"""Brings an exported graph into the form that the analysis reads.

Parameters and buffers of a graph by their dotted names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from st3fx.passes.channels.call import shape_of


def attribute(module: nn.Module, target: str) -> Any:
    """What a dotted name stands for."""
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def assign(module: nn.Module, target: str, value: Tensor) -> None:
    """Give a parameter or buffer another value, of whatever shape; make a parameter if need be."""
    path, _, name = target.rpartition(".")
    owner = attribute(module, path) if path else module
    if name in owner._buffers:
        owner._buffers[name] = value
        return
    old = owner._parameters.get(name)
    trained = old is None or old.requires_grad
    owner.register_parameter(name, nn.Parameter(value, requires_grad=trained))


def free(module: nn.Module, target: str) -> str:
    """``target``, or with a number behind it where that is taken."""
    path, _, name = target.rpartition(".")
    owner = attribute(module, path) if path else module
    number, wanted = 1, name
    while hasattr(owner, wanted):
        number += 1
        wanted = f"{name}_{number}"
    return f"{path}.{wanted}" if path else wanted


_aten = torch.ops.aten


def normalize(module: fx.GraphModule) -> None:
    """Drop guards, give each parameter one node, and write channel shuffles as what they are."""
    leaves: dict[int, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
        elif node.op == "get_attr":
            tensor = attribute(module, str(node.target))
            first = leaves.setdefault(id(tensor), node) if isinstance(tensor, Tensor) else node
            if first is not node:
                node.replace_all_uses_with(first)
                module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in (
            _aten.view.default,
            _aten.reshape.default,
        ):
            _replace_shuffle(module, node)
    module.graph.eliminate_dead_code()


def _replace_shuffle(module: fx.GraphModule, first: fx.Node) -> None:
    """Split a dimension, swap the parts, join them: an order of the channels."""
    swap = _only_user(first)
    join = _only_user(swap) if swap is not None else None
    if join is not None and join.target in (_aten.clone.default, _aten.contiguous.default):
        join = _only_user(join)
    source: Any = first.args[0]
    if swap is None or join is None or join.target not in (
        _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default
    ):  # fmt: skip
        return
    before, split = shape_of(source.meta["val"]), shape_of(first.meta["val"])
    dim = next(
        (d for d, pair in enumerate(zip(before, split, strict=False)) if len(set(pair)) > 1), 0
    )
    if shape_of(join.meta["val"]) != before or not _is_swap(swap, dim, len(split)):
        return
    if (*before[:dim], *before[dim + 1 :]) != (*split[:dim], *split[dim + 2 :]):
        return
    if not all(isinstance(size, int) for size in split[dim : dim + 2]):
        return
    order = torch.arange(before[dim]).reshape(split[dim : dim + 2]).t().reshape(-1)
    name = f"channel_order_{len(module._buffers)}"
    module.register_buffer(name, order)
    with module.graph.inserting_before(join):
        index = module.graph.get_attr(name)
        node = module.graph.call_function(_aten.index_select.default, (source, dim, index))
    node.meta.update(join.meta)
    join.replace_all_uses_with(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_swap(node: fx.Node, dim: int, rank: int) -> bool:
    """Whether a node swaps a dimension with the next."""
    args: Any = node.args
    if node.target is _aten.transpose.int:
        return sorted(number % rank for number in args[1:]) == [dim, dim + 1]
    order = [*range(dim), dim + 1, dim, *range(dim + 2, rank)]
    return node.target is _aten.permute.default and list(args[1]) == order
