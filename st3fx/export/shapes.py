"""Which shapes between the nodes of a graph are written: those that something reads."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from st3fx.runtime.inference import DOMAIN


def keep_needed_shapes(graph: onnx.GraphProto) -> None:
    """Leave out the entries of ``value_info`` that nothing needs, in place.

    ONNX Runtime infers shapes, but for those of our operators, and lets one of them overwrite its
    operand only where both shapes are known. Counting needs sizes of what branches and loops give,
    and in them. All others go: that of a weight which is stored as sparse contradicts ONNX's type
    inference, and one with a free batch contradicts the size that a runtime was given for it.
    """
    wanted, branches = set(_near_ours(graph)), set()
    for node in graph.node:
        inner = [item for about in node.attribute for item in (about.g, *about.graphs) if item.node]
        if inner:
            branches |= set(node.output)
        for item in inner:
            _keep(item, [value for value in item.value_info if _is_fixed(value)])
    _keep(graph, [
        value for value in graph.value_info
        if value.name in wanted or (value.name in branches and _is_fixed(value))
    ])  # fmt: skip


def _keep(graph: onnx.GraphProto, values: list[onnx.ValueInfoProto]) -> None:
    del graph.value_info[:]
    graph.value_info.extend(values)


def _near_ours(graph: onnx.GraphProto) -> Iterator[str]:
    """What our operators read and give, but for constants."""
    constants = {item.name for item in graph.initializer}
    for node in graph.node:
        if node.domain == DOMAIN:
            yield from node.output
            yield from (name for name in node.input if name not in constants)


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    """Whether all sizes are numbers."""
    return all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
