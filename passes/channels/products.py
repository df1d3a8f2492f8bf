"""Rules of convolutions, linear layers, matrix products, attention and embeddings."""

from __future__ import annotations

from typing import Any

from torch import fx

from st3fx.passes.channels.call import Call
from st3fx.passes.channels.coupling import Ids, Kept
from st3fx.passes.channels.fact import Fact, Slices, join
from st3fx.passes.channels.product import Layout, Product, work_of

FIXED = "it is summed with channels that have to stay"


def conv(call: Call) -> Fact | None:
    """A convolution of any number of dimensions, with groups."""
    x, weight = call.fact("input"), call.fact("weight")
    groups, swapped = int(call["groups"]), _is_transposed(call)
    if weight.tensor is None or (groups > 1 and (swapped or not _is_editable(call["weight"]))):
        return None
    axis = x.rank - weight.rank + 1
    inputs = _channels(call, x.axes[axis], x.shape[axis])
    if groups > 1:
        # Each group loses other inputs than the next: shrink cuts this dimension, not its channels.
        call.coupling.pin(weight.axes[1], call.reason)
        call.coupling.changes.append(lambda kept: call.set("groups", _groups(kept, inputs, groups)))
    bordered = swapped or _is_padded(call["padding"])
    layout = Layout(groups, swapped)
    return _product(call, x, "weight", axis, inputs, layout, bias="bias", bordered=bordered)


def _is_transposed(call: Call) -> bool:
    return bool(call.get("transposed", call.name.startswith("conv_transpose")))


def _is_padded(padding: Any) -> bool:
    """Whether zeros may stand around the image; ``same`` counts as that."""
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, list | tuple) else bool(padding)


def _groups(kept: Kept, inputs: Ids, groups: int) -> int:
    return int(kept.of(inputs).reshape(groups, -1).any(1).sum())


def linear(call: Call) -> Fact | None:
    """``x Wᵀ + b``."""
    x = call.x
    inputs = _channels(call, x.axes[-1], x.shape[-1])
    return _product(call, x, "weight", x.rank - 1, inputs, Layout(), bias="bias")


def matmul(call: Call) -> Fact | None:
    """A product with a static matrix on the right, or of two activations."""
    names = ("mat1", "mat2") if call.name == "addmm" else [a.name for a in call.schema.arguments]
    x, weight = call.fact(names[0]), call.fact(names[1])
    if weight.tensor is not None and weight.rank == 2 and x.rank > 1 and x.tensor is None:
        if call.name == "addmm" and (call["beta"] != 1 or call["alpha"] != 1):
            return None
        bias = "self" if call.name == "addmm" else ""
        inputs = _channels(call, x.axes[-1], x.shape[-1])
        return _product(call, x, names[1], x.rank - 1, inputs, Layout(swapped=True), bias=bias)
    if call.name == "addmm" or min(x.rank, weight.rank) < 2:
        return None
    call.coupling.pin(x.axes[-1], call.reason)
    call.coupling.pin(weight.axes[-2], call.reason)
    shape = call.shape
    batch = [Fact(f.shape[:-2], f.axes[:-2]) for f in (x, weight)]
    return call.result((*join(call.coupling, batch, shape[:-2]), x.axes[-2], weight.axes[-1]))


def _product(
    call: Call,
    x: Fact,
    name: str,
    axis: int,
    inputs: Ids,
    layout: Layout,
    *,
    bias: str,
    bordered: bool = False,
) -> Fact | None:
    """Note a product; what is known of its result."""
    weight, addend = call.fact(name), call.optional(bias)
    if weight.tensor is None or (addend is not None and addend.tensor is None):
        return None
    first, second = (1, 0) if layout.swapped else (0, 1)
    outputs = _channels(call, weight.axes[first], weight.shape[first])
    if layout.groups == 1:
        call.coupling.tie(inputs, _channels(call, weight.axes[second], weight.shape[second]))
    if addend is not None:
        call.coupling.tie(outputs, _channels(call, addend.axes[-1], addend.shape[-1]))
    for kernel in weight.axes[2:]:
        call.coupling.pin(kernel, call.reason)
    shape, size = call.shape, int(x.shape[axis])
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
        work=work_of(x.shape if layout.swapped and bordered else shape, axis),
    )
    call.coupling.products.append(product)
    values, known = product.constant()
    constant = Slices(axis, values, known) if bool(known.any()) else None
    return call.result((*x.axes[:axis], outputs, *(None,) * (len(shape) - axis - 1)), constant)


def _channels(call: Call, ids: Ids | None, size: Any) -> Ids:
    return call.coupling.fixed(int(size), FIXED) if ids is None else ids


def _is_editable(node: fx.Node) -> bool:
    """Whether a weight is a parameter that one operator alone reads."""
    return node.op == "get_attr" and len(node.users) == 1


def attention(call: Call) -> Fact | None:
    """``softmax(q kᵀ / √d) v``: heads are one in all, channels of ``v`` pass through."""
    q, k, v = (call.fact(name) for name in ("query", "key", "value"))
    if call["enable_gqa"] or call.optional("attn_mask") is not None:
        return None
    for fact in (q, k):
        call.coupling.pin(fact.axes[-1], call.reason)
    for fact in (k, v):
        call.coupling.pin(fact.axes[-2], call.reason)
    shape = call.shape
    batch = [Fact(fact.shape[:-2], fact.axes[:-2]) for fact in (q, k, v)]
    return call.result((*join(call.coupling, batch, shape[:-2]), q.axes[-2], v.axes[-1]))


def embedding(call: Call) -> Fact:
    """Rows of a table."""
    weight, indices = call.fact("weight"), call.fact("indices")
    call.coupling.pin(weight.axes[0], call.reason)
    call.pin("indices")
    return call.result((*(None,) * indices.rank, weight.axes[1]))
