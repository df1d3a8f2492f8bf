"""Takes dead channels out of a graph and its parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx

from st3fx.passes.channels.coupling import Ids, Mask
from st3fx.passes.channels.fact import Axes
from st3fx.passes.channels.liveness import Liveness, carrier
from st3fx.passes.channels.names import assign, attribute, free
from st3fx.passes.channels.product import Product


def shrink(module: fx.GraphModule, liveness: Liveness) -> None:
    """Rewrite a graph in place: constants into biases and carriers, then the cuts.

    Args:
        module: That was analyzed.
        liveness: What of it stays.
    """
    analysis = liveness.analysis
    leaves = {node: fact.axes for node, fact in analysis.facts.items() if node.op == "get_attr"}
    for product in analysis.coupling.products:
        if liveness.lives(product.outputs).any():
            _absorb(module, liveness, product, leaves)
    for node, axes in leaves.items():
        _cut(module, liveness, node, axes)
    kept = liveness.kept
    for change in analysis.coupling.changes:
        change(kept)


def _cut(module: fx.GraphModule, liveness: Liveness, node: fx.Node, axes: Axes) -> None:
    """Take dead indices out of a parameter or buffer."""
    value = tensor = attribute(module, str(node.target)).detach()
    for dim, ids in enumerate(axes):
        living = None if ids is None else liveness.lives(ids)
        if living is not None and not living.all():
            value = value.index_select(dim, torch.from_numpy(np.flatnonzero(living)))
    if value is not tensor:
        assign(module, str(node.target), value)


def _absorb(
    module: fx.GraphModule, liveness: Liveness, product: Product, leaves: dict[fx.Node, Axes]
) -> None:
    """Put the constants that go into the bias or the carrier, and cut the weights of groups."""
    merged, weight = liveness.merged(product), None
    if merged.any() and product.bordered:
        weight = product.common.clone()
        for group in np.flatnonzero(merged.any(1)):
            _carry(liveness, product, int(group), merged[group], weight)
    elif merged.any():
        shift = torch.from_numpy(product.shift(merged).reshape(-1))
        _add_bias(module, product, shift, leaves)
    if product.layout.groups > 1:
        weight = _cut_groups(liveness, product, product.common if weight is None else weight)
    if weight is not None:
        restored = product.layout.restore(weight, tuple(product.tensor.shape[2:]))
        assign(module, str(product.weight.target), restored)


def _carry(liveness: Liveness, product: Product, group: int, merged: Mask, weight: Tensor) -> None:
    """Add filters to the carrier's, each by the ratio of the two constants."""
    place = carrier(product, group, liveness.lives(product.inputs[group]))
    assert place is not None
    constants = product.constants[group]
    places = np.flatnonzero(merged)
    ratios = torch.from_numpy(constants[places] / constants[place])
    filters = product.common[group][:, places].double()
    total = product.common[group][:, place].double() + torch.einsum("oit,i->ot", filters, ratios)
    weight[group, :, place] = total.to(weight.dtype)


def _cut_groups(liveness: Liveness, product: Product, weight: Tensor) -> Tensor:
    """The inputs that each group keeps: (groups, outputs, inputs, taps). A dead group keeps any."""
    inputs = liveness.lives(product.inputs)
    size = int(inputs.sum(1).max())
    places = np.sort(np.argsort(~inputs, axis=1, kind="stable")[:, :size], axis=1)
    index = torch.from_numpy(places)[:, None, :, None]
    return weight.gather(2, index.expand(-1, weight.shape[1], -1, weight.shape[3]))


def _add_bias(
    module: fx.GraphModule, product: Product, shift: Tensor, leaves: dict[fx.Node, Axes]
) -> None:
    """Add to a bias; where there is none, or others read it too, one is made."""
    old, place = _bias(product)
    outputs: Ids = product.outputs.reshape(-1)
    dtype = product.tensor.dtype
    if old is not None and old.op == "get_attr" and len(old.users) == 1:
        bias = attribute(module, str(old.target)).double() + shift
        assign(module, str(old.target), bias.to(dtype))
        return
    if product.addend is not None:
        shift = shift + product.addend.double()
    path, _, weight = product.name.rpartition(".")
    own = "bias" if weight == "weight" else f"{weight}_bias"
    name = free(module, f"{path}.{own}" if path else own)
    assign(module, name, shift.to(dtype))
    with module.graph.inserting_before(product.node):
        node = module.graph.get_attr(name)
    leaves[node] = (outputs,)
    if product.bias:
        args = [*product.node.args, *(None,) * (place + 1 - len(product.node.args))]
        args[place] = node
        product.node.args = tuple(args)
        return
    with module.graph.inserting_after(product.node):
        total = module.graph.call_function(torch.ops.aten.add.Tensor, (product.node, node))
    product.node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def _bias(product: Product) -> tuple[fx.Node | None, int]:
    """The node of a bias, and its place among the arguments."""
    assert isinstance(product.node.target, torch._ops.OpOverload)
    names = [argument.name for argument in product.node.target._schema.arguments]
    if not product.bias:
        return None, -1
    place = names.index(product.bias)
    found = product.node.args[place] if place < len(product.node.args) else None
    return found if isinstance(found, fx.Node) else None, place
