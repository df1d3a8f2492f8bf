"""Writes a graph in an older opset, down to 13, which runtimes of the last five years ask for.

Most operators that were revised since then took in more types, and are what they were for those of
before: the definitions of both versions tell. What changed otherwise is in a table
(``older_operators``). What neither covers is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

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
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain:
            continue
        rewrite = REWRITES.get(node.op_type)
        if rewrite is not None and target < rewrite.since <= source:
            rewrite.apply(node, target)
            continue
        _fit(node, source, target)
    model.opset_imports[""] = target


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
            raise TooNewError(node, f"{name}={value} is there from opset {new.since_version} on")
        node.attributes.pop(name, None)
    for values, formal in ((node.inputs, old.inputs), (node.outputs, old.outputs)):
        _check_types(node, values, formal, target)


def _default(schema: onnx.defs.OpSchema, name: str) -> Any:
    """What an attribute is where a node does not say; ``None`` where that is up to the node."""
    given = schema.attributes[name].default_value
    value = onnx.helper.get_attribute_value(given) if given.type else None
    return value.decode() if isinstance(value, bytes) else value


def _check_types(
    node: ir.Node,
    values: Sequence[ir.Value | None],
    formal: Sequence[onnx.defs.OpSchema.FormalParameter],
    target: int,
) -> None:
    for index, value in enumerate(values):
        if value is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            continue
        last = formal[-1]
        variadic = last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic
        if index >= len(formal) and not variadic:
            raise TooNewError(node, f"it has {len(values)} inputs or outputs")
        kind = f"tensor({_type_name(value.dtype)})"
        if kind not in formal[min(index, len(formal) - 1)].types:
            raise TooNewError(node, f"opset {target} has it for other types than {kind}")


def _type_name(dtype: ir.DataType) -> str:
    """As definitions write it."""
    return str(onnx.helper.tensor_dtype_to_string(dtype.value)).rpartition(".")[2].lower()
