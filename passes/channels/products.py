"""Rules of convolutions, linear layers, matrix products, attention and embeddings."""

from __future__ import annotations

from typing import Any

from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact, Ids, Slices
from st3fx.passes.channels.operand import Operand, join
from st3fx.passes.channels.product import Layout, Product, work_of

FIXED = "it is summed with channels that have to stay"


def conv(call: Call) -> Fact | None:
    """A convolution of any number of dimensions, with groups: what is around the channels stays."""
    x, weight = call.operand("input"), call.operand("weight")
    groups, swapped = int(call["groups"]), _is_transposed(call)
    if groups > 1 and (swapped or not _is_editable(call["weight"])):
        return None
    axis = x.rank - weight.rank + 1
    bordered = swapped or _is_padded(call["padding"])
    layout = Layout(groups, swapped)
    found = _product(call, x, "weight", axis, layout, bias="bias", bordered=bordered)
    if found is not None and groups > 1:
        inputs = call.coupling.products[-1].inputs
        # Each group loses other inputs than the next: shrink cuts this dimension, not its channels.
        weight.whole(1)
        call.afterwards(lambda kept: call.rewrite("groups", int(kept.of(inputs).any(1).sum())))
    return found


def _is_transposed(call: Call) -> bool:
    return bool(call.get("transposed", call.name.startswith("conv_transpose")))


def _is_padded(padding: Any) -> bool:
    """Whether zeros may stand around the image; ``same`` counts as that."""
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def linear(call: Call) -> Fact | None:
    """``x Wᵀ + b``."""
    x = call.x
    return _product(call, x, "weight", x.rank - 1, Layout(), bias="bias")


def matmul(call: Call) -> Fact | None:
    """A product with a static matrix on the right, or of two activations."""
    names = ("mat1", "mat2") if call.name == "addmm" else list(call.parameters)
    x, other = call.operand(names[0]), call.operand(names[1])
    if other.tensor is not None and other.rank == 2 and x.rank > 1 and x.tensor is None:
        if call.name == "addmm" and (call["beta"] != 1 or call["alpha"] != 1):
            return None
        bias = "self" if call.name == "addmm" else ""
        return _product(call, x, names[1], x.rank - 1, Layout(swapped=True), bias=bias)
    if call.name == "addmm" or min(x.rank, other.rank) < 2:
        return None
    axes = join(call.coupling, (x, other), call.shape, but=2)
    return call.result([*axes, x.carried(x.rank - 2), other.carried(other.rank - 1)])


def _product(
    call: Call, x: Operand, name: str, axis: int, layout: Layout, *, bias: str,
    bordered: bool = False,
) -> Fact | None:  # fmt: skip
    """Note a product; what is known of its result."""
    weight, addend = call.operand(name), call.optional(bias)
    first, second = (1, 0) if layout.swapped else (0, 1)
    if weight.tensor is None or weight.rank < 2:
        return None
    if addend is not None and (addend.tensor is None or addend.shape != (weight.shape[first],)):
        return None
    size = weight.shape[second] * layout.groups
    inputs = _channels(call, x.summed(axis), size)
    outputs = _channels(call, weight.carried(first), weight.shape[first])
    if layout.groups == 1:
        of_weight = _channels(call, weight.summed(second), weight.shape[second])
        call.coupling.tie(inputs, of_weight)
    if addend is not None:
        call.coupling.tie(outputs, _channels(call, addend.carried(0), addend.shape[0]))
    product = Product(
        node=call.node,
        weight=call[name],
        bias=bias,
        layout=layout,
        tensor=weight.tensor,
        addend=None if addend is None else addend.tensor,
        inputs=inputs.reshape(layout.groups, -1),
        outputs=outputs.reshape(layout.groups, -1),
        given=x.slices(axis, x.rank, size),
        bordered=bordered,
        editable=_is_editable(call[name]),
        work=work_of(x.shape if layout.swapped and bordered else call.shape, axis),
    )
    call.coupling.products.append(product)
    values, known = product.constant()
    constant = Slices(axis, values, known) if bool(known.any()) else None
    axes = x.all_carried(*range(axis, x.rank))
    axes[axis] = outputs
    return call.result(axes, constant)


def _channels(call: Call, ids: Ids | None, size: Any) -> Ids:
    return call.coupling.fixed(int(size), FIXED) if ids is None else ids


def _is_editable(node: fx.Node) -> bool:
    """Whether a weight is a parameter that one operator alone reads."""
    return node.op == "get_attr" and len(node.users) == 1


def attention(call: Call) -> Fact | None:
    """``softmax(q kᵀ / √d) v``: heads are one in all, channels of ``v`` pass through."""
    q, k, v = (call.operand(name) for name in ("query", "key", "value"))
    if call["enable_gqa"] or call["attn_mask"] is not None:
        return None
    axes = join(call.coupling, (q, k, v), call.shape, but=2)
    # A causal mask is told by positions.
    positions = None if call["is_causal"] else q.carried(q.rank - 2)
    return call.result([*axes, positions, v.carried(v.rank - 1)])


def embedding(call: Call) -> Fact:
    """Rows of a table."""
    weight, indices = call.operand("weight"), call.operand("indices")
    return call.result([*(None,) * indices.rank, weight.carried(1)])
