"""Goes through a graph once and notes what is known of every tensor."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from st3fx.passes.channels.call import Call, facts_of, shape_of
from st3fx.passes.channels.coupling import Ids
from st3fx.passes.channels.fact import Fact
from st3fx.passes.channels.names import attribute
from st3fx.passes.channels.product import Notes
from st3fx.passes.channels.rules import RULES
from st3fx.passes.channels.settle import settle

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
