"""Operands that are constant altogether: a vector takes the place of what computed them."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from st3fx.passes.channels.analyze import Analysis
from st3fx.passes.channels.call import Call
from st3fx.passes.channels.fact import Fact

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
