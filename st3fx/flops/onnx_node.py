"""Attributes and names of ONNX nodes."""

from __future__ import annotations

import ast
from typing import Any

import onnx

STANDARD = ("", "ai.onnx")
"""Names of the standard domain."""

CONTROL = ("If", "Loop", "Scan")
"""Operators that run graphs of their own."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value, texts decoded."""
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def label(node: onnx.NodeProto) -> str:
    """How an error names a node."""
    return f"node {node.name or node.output[0]!r} ({node.op_type})"


def operator(node: onnx.NodeProto) -> str:
    """How a report names an operator: ``Conv``, ``com.microsoft:Inverse``."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}:{node.op_type}"


def is_floating(element: int) -> bool:
    """Whether arithmetic on a type counts: floating-point, of any width, or complex."""
    name = onnx.TensorProto.DataType.Name(element)
    return bool(name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX")))


def module(node: onnx.NodeProto) -> str:
    """The module that a node is exported from, where the exporter says it, else its name."""
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(item.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return node.name or node.output[0]
