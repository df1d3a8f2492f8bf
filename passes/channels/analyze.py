"""Goes through a graph once and notes what is known of every tensor.

The table from ATen operator to rule.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from st3fx.passes.channels import elementwise, layout, products, spatial
from st3fx.passes.channels import layout as reshape
from st3fx.passes.channels import spatial as padding
from st3fx.passes.channels.call import Call, facts_of, shape_of
from st3fx.passes.channels.fact import Fact, Ids
from st3fx.passes.channels.normalize import attribute
from st3fx.passes.channels.product import Notes
from st3fx.passes.channels.settle import settle

Rule = Callable[[Call], Any]
"""Gives a fact, a tuple of them for several results, or ``None`` where it has to give up."""


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.COPIES, elementwise.copy),
    **dict.fromkeys(elementwise.BINARY, elementwise.binary),
    "prelu": elementwise.prelu,
    "_native_batch_norm_legit_no_training": elementwise.batch_norm,
    **_all("conv1d conv2d conv3d convolution", products.conv),
    **_all("conv_transpose1d conv_transpose2d conv_transpose3d", products.conv),
    "linear": products.linear,
    **_all("mm bmm matmul addmm", products.matmul),
    "scaled_dot_product_attention": products.attention,
    "embedding": products.embedding,
    **_all("max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d", spatial.pool),
    **_all("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", spatial.pool),
    **_all("_adaptive_avg_pool2d _adaptive_avg_pool3d", spatial.pool),
    **_all("upsample_nearest2d upsample_bilinear2d _upsample_nearest_exact2d", spatial.pool),
    **_all("mean amax amin sum", spatial.reduce),
    **_all("softmax _softmax log_softmax _log_softmax cumsum", spatial.over_dims),
    "layer_norm": spatial.layer_norm,
    "roll": spatial.roll,
    "sym_size": spatial.size,
    "permute": layout.permute,
    **_all("transpose t", layout.transpose),
    "unsqueeze": layout.unsqueeze,
    "squeeze": layout.squeeze,
    "cat": layout.cat,
    "slice": layout.slice_,
    "select": layout.select,
    "index_select": layout.index_select,
    **_all("split split_with_sizes chunk", layout.split),
    **_all("pad constant_pad_nd", padding.pad),
    **_all("view reshape _unsafe_view", reshape.view),
    "expand": reshape.expand,
    "pixel_shuffle": reshape.pixel_shuffle,
}
"""By name; an operator without a rule needs all channels that it reads."""


OUTPUT = "it reaches an output of the model"


class Analysis:
    """What is known of a graph.

    Attributes:
        coupling: Its channels.
        facts: By node; a tuple where an operator has several results.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        """Walk a functional ATen graph whose nodes have values of a trace."""
        self.module = module
        self.coupling = Notes()
        self.facts: dict[fx.Node, Any] = {}
        for node in module.graph.nodes:
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            tensor = attribute(self.module, str(node.target))
            if isinstance(tensor, Tensor):
                value = None if _is_written(node) else tensor.detach()
                self.facts[node] = Fact(tuple(tensor.shape), self._axes(tensor), tensor=value)
        elif node.op == "output":
            self._pin_all(node, OUTPUT)
        elif node.target is operator.getitem:
            self.facts[node] = self._item(node)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            self.facts[node] = self._apply(node)
        else:
            self._pin_all(node, f"{node.target} needs all of them")
            self.facts[node] = _unknown(node.meta.get("val"))

    def _item(self, node: fx.Node) -> Any:
        """One of several results."""
        args: Any = node.args
        found, index = self.facts.get(args[0]), args[1]
        if isinstance(found, tuple) and index < len(found):
            return found[index]
        return _unknown(node.meta.get("val"))

    def _apply(self, node: fx.Node) -> Any:
        call = Call(node, self.facts, self.coupling)
        found = self._ruled(call)
        if found is None:
            self._pin_all(node, call.reason)
            found = _unknown(node.meta.get("val"))
        if isinstance(found, Fact) and all(self._is_static(n) for n in node.all_input_nodes):
            tensor = _computed(node, self.facts)
            found = Fact(found.shape, found.axes, tensor=tensor) if tensor is not None else found
        return found

    def _ruled(self, call: Call) -> Any:
        """What an operator's rule finds; ``None``, and no note of it, where there is none."""
        rule = RULES.get(call.name)
        if rule is None or not isinstance(self.facts.get(_first(call.node)), Fact):
            return None
        mark = self.coupling.mark()
        found = rule(call)
        if found is None:
            self.coupling.rewind(mark)
            return None
        return settle(call, found, mark)

    def _axes(self, tensor: Tensor) -> tuple[Ids | None, ...]:
        return tuple(self.coupling.fresh(size) if size > 1 else None for size in tensor.shape)

    def _is_static(self, node: fx.Node) -> bool:
        fact = self.facts.get(node)
        return isinstance(fact, Fact) and fact.tensor is not None

    def _pin_all(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            for fact in facts_of(self.facts.get(source)):
                for ids in fact.axes:
                    self.coupling.pin(ids, reason)


def _first(node: fx.Node) -> Any:
    return node.all_input_nodes[0] if node.all_input_nodes else None


def _is_written(node: fx.Node) -> bool:
    """Whether a call changes a buffer: the next one finds another value."""
    return any(
        isinstance(user.target, torch._ops.OpOverload) and user.target._schema.is_mutable
        for user in node.users
    )


def _unknown(value: Any) -> Any:
    """Of a tensor: its shape; of several: each; of a number: nothing."""
    if isinstance(value, Tensor):
        return Fact(shape_of(value), (None,) * value.dim())
    if isinstance(value, list | tuple):
        return tuple(_unknown(item) for item in value)
    return None


def _computed(node: fx.Node, facts: dict[fx.Node, Any]) -> Tensor | None:
    """The value of an operator on parameters and buffers alone."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.nondeterministic_seeded in node.target.tags or not node.all_input_nodes:
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: facts[n].tensor)
    value = node.target(*args, **kwargs)
    return value if isinstance(value, Tensor) else None
