"""Writes a graph in an older opset, down to 13, which runtimes of the last five years ask for.

Most operators that were revised since then took in more types, and are what they were for those of
before: the definitions of both versions tell. What changed otherwise is in a table
(``older_operators``). What neither covers is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from st3fx.onnx_passes.older_operators import NEUTRAL, REWRITES, TooNewError

LOWEST = 13
"""As far down as the table goes."""


def lower_opset(model: ir.Model, target: int) -> None:
    """Rewrite the operators that are not in an older opset as they are, in place.

    Args:
        model: Without functions; its opset is 18, or between that and the target.
        target: From :data:`LOWEST` on.

    Raises:
        TooNewError: Names an operator that has no form there.
    """
    source = model.opset_imports[""]
    used = {name for name, value in model.graph.initializers.items() if value.uses()}
    for node in list(_nodes(model)):
        rewrite = REWRITES.get(node.op_type)
        if rewrite is not None and target < rewrite.since <= source:
            rewrite.apply(node, target)
        else:
            _fit(node, source, target)
    for name in used:  # axes that are attributes now
        if not model.graph.initializers[name].uses():
            model.graph.initializers.pop(name)
    model.opset_imports[""] = target


def least_opset(model: ir.Model) -> tuple[int, str]:
    """The first opset that has all operators of a graph for the types that they are used with.

    Returns:
        It, and what asks for it (``Conv of bfloat16``); nothing where it is the graph's own.
    """
    least, reason = model.opset_imports[""], ""
    for node in _nodes(model):
        kind = _unknown_type(node, onnx.defs.get_schema(node.op_type, least, ""))
        later = range(least + 1, onnx.defs.onnx_opset_version() + 1) if kind else ()
        for version in later:
            if not _unknown_type(node, onnx.defs.get_schema(node.op_type, version, "")):
                least, reason = version, f"{node.op_type} of {kind}"
                break
    return least, reason


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Those of ONNX's own domain, in branches and loops too."""
    return (node for node in ir.traversal.RecursiveGraphIterator(model.graph) if not node.domain)


def _fit(node: ir.Node, source: int, target: int) -> None:
    """Check an operator that stays against the older definition; leave out what means nothing.

    Raises:
        TooNewError: Where it cannot be had.
    """
    new = onnx.defs.get_schema(node.op_type, source, "")
    try:
        old = onnx.defs.get_schema(node.op_type, target, "")
    except onnx.defs.SchemaError:
        raise TooNewError(node, f"it is there from opset {new.since_version} on") from None
    if old.since_version == new.since_version:
        return
    for name in new.attributes.keys() - old.attributes.keys():
        value = node.attributes[name].value if name in node.attributes else _default(new, name)
        if value is not None and NEUTRAL.get((node.op_type, name)) != value:
            since = _first(node.op_type, name, target, source)
            raise TooNewError(node, f"{name}={value} is there from opset {since} on")
        node.attributes.pop(name, None)
    if kind := _unknown_type(node, old):
        raise TooNewError(node, f"opset {target} has it for other types than {kind}")


def _first(op: str, name: str, target: int, source: int) -> int:
    """The first opset above the target in which an operator has an attribute."""
    versions = range(target + 1, source)
    has = (v for v in versions if name in onnx.defs.get_schema(op, v, "").attributes)
    return next(has, source)


def _default(schema: OpSchema, name: str) -> Any:
    """What an attribute is where a node does not say; ``None`` where that is up to the node."""
    given = schema.attributes[name].default_value
    value = onnx.helper.get_attribute_value(given) if given.type else None
    return value.decode() if isinstance(value, bytes) else value


def _unknown_type(node: ir.Node, schema: OpSchema) -> str:
    """A type that a node is used with and its definition lacks, as ``bfloat16``; else nothing."""
    kinds = (*_kinds(node.inputs, schema.inputs), *_kinds(node.outputs, schema.outputs))
    return next((kind for kind, known in kinds if f"tensor({kind})" not in known), "")


def _kinds(
    values: Sequence[ir.Value | None], formal: Sequence[OpSchema.FormalParameter]
) -> Iterator[tuple[str, set[str]]]:
    """The types of tensors, where they are known, beside those that may stand in their place."""
    for index, value in enumerate(values):
        if value is not None and value.dtype is not None and isinstance(value.type, ir.TensorType):
            name = onnx.helper.tensor_dtype_to_string(value.dtype.value)
            # The last place stands for any number of values where the operator takes so many.
            known = formal[min(index, len(formal) - 1)].types
            yield name.rpartition(".")[2].lower(), set(known)
