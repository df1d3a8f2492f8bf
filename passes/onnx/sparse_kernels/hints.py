"""Lets a file say what it needs, in whichever session it is opened.

ONNX Runtime's error about an operator that it does not know names the operator and its domain, and
nothing else that is in a file. So each of our operators gets a body, a function of the model, which
is looked at only where no library has the operator: it calls the same operator of a domain whose
name says how to register one. The library knows that domain too, so that a file in which a tool has
put the bodies in place runs as before.
"""

from __future__ import annotations

import onnx
from onnx import AttributeProto, helper

from st3fx.runtime.inference import DOMAIN, HINT, OPSET

_FUNCTIONS = 8
"""The first version of the format in which a model has functions."""


def add_hints(model: onnx.ModelProto) -> None:
    """Give each of our operators in a model its body, in place; nothing where there is none."""
    calls: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            calls.setdefault(node.op_type, []).append(node)
    for name, nodes in sorted(calls.items()):
        model.functions.append(_body(name, nodes))
    if calls:
        model.doc_string = HINT
        model.ir_version = max(model.ir_version, _FUNCTIONS)


def _body(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    inputs = [f"input_{index}" for index in range(max(len(node.input) for node in nodes))]
    kinds = {about.name: about.type for node in nodes for about in node.attribute}
    inner = helper.make_node(name, inputs, ["output"], domain=HINT)
    inner.attribute.extend(
        AttributeProto(name=about, ref_attr_name=about, type=kind)
        for about, kind in sorted(kinds.items())
    )
    return helper.make_function(
        DOMAIN, name, inputs, ["output"], [inner], [helper.make_opsetid(HINT, OPSET)],
        attributes=sorted(kinds),
    )  # fmt: skip
