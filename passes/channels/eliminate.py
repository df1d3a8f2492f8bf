"""Dead-channel elimination on an exported program; see the package for what it does.

Takes dead channels out of a graph and its parameters.

Operands that are constant altogether: a vector takes the place of what computed them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.call import Call
from st3fx.passes.channels.channel_report import ChannelReport, report, snapshot
from st3fx.passes.channels.fact import Axes, Fact, Ids, Mask
from st3fx.passes.channels.liveness import Liveness, carrier
from st3fx.passes.channels.normalize import assign, attribute, free, normalize
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


_BINARY = ("add", "sub", "mul", "div")


def replace_branches(module: fx.GraphModule, analysis: Analysis) -> Analysis:
    """Put vectors in the place of constant operands of sums and products, while there are any.

    What is left of a residual block that has lost all of its weights is a vector that is added; if
    it is zero, the addition goes too.

    Args:
        module: A functional ATen graph; changed.
        analysis: What is known of it.

    Returns:
        What is known of it afterwards.
    """
    while True:
        changed = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                changed |= _replace(module, Call(node, analysis.facts, analysis.coupling))
        if not changed:
            return analysis
        module.graph.eliminate_dead_code()
        analysis = Analysis(module)


def _replace(module: fx.GraphModule, call: Call) -> bool:
    if call.name not in _BINARY or _is_known(call.facts.get(call.node)):
        return False
    names = ("self", "other")
    for name, remaining in zip(names, reversed(names), strict=True):
        fact, other = (call.facts.get(call.get(side)) for side in (name, remaining))
        if not isinstance(fact, Fact) or not _is_known(fact):
            continue
        if not isinstance(other, Fact) or other.shape != call.shape:
            continue
        vector = _vector(fact)
        same = call.dtype == vector.dtype == call[remaining].meta["val"].dtype
        adds = call.name == "add" or (call.name, name) == ("sub", "other")
        if same and adds and not vector.any():
            call.node.replace_all_uses_with(call[remaining])
        else:
            call.rewrite(name, _parameter(module, call.node, vector))
        return True
    return False


def _is_known(fact: object) -> bool:
    return (
        isinstance(fact, Fact)
        and fact.tensor is None
        and fact.constant is not None
        and fact.constant.everywhere
    )


def _vector(fact: Fact) -> Tensor:
    assert fact.constant is not None
    size = len(fact.constant.values)
    return fact.constant.values.reshape(size, *(1,) * (fact.rank - fact.constant.axis - 1)).clone()


def _parameter(module: fx.GraphModule, node: fx.Node, vector: Tensor) -> fx.Node:
    number = 0
    while hasattr(module, f"constant_{number}"):
        number += 1
    module.register_buffer(f"constant_{number}", vector)
    with module.graph.inserting_before(node):
        return module.graph.get_attr(f"constant_{number}")


def eliminate(program: ExportedProgram) -> tuple[fx.GraphModule, ChannelReport]:
    """Remove channels that are constant or that nothing reads.

    Args:
        program: Of a model in eval mode, as ``torch.export.export`` gives it; not changed.

    Returns:
        A graph that computes the same from the same inputs, and what was removed. Its parameters
        have the model's names; each that was cut or changed is a new tensor. It has no nodes'
        values of a trace: they would be those of other shapes.
    """
    module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    with torch.no_grad():
        return _eliminate(module)


def _eliminate(module: fx.GraphModule) -> tuple[fx.GraphModule, ChannelReport]:
    normalize(module)
    first = Analysis(module)
    before = snapshot(module, first)
    liveness = Liveness(replace_branches(module, first))
    shrink(module, liveness)
    module.graph.eliminate_dead_code()
    for node in module.graph.nodes:
        for key in ("val", "tensor_meta", "example_value"):
            node.meta.pop(key, None)
    module.graph.lint()
    # Made anew, it has what the graph reads and nothing else.
    return fx.GraphModule(module, module.graph), report(before, module, liveness)
