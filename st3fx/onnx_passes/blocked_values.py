"""Which values of a written graph are in the blocked layout of ``st3fx/runtime/ops.md``."""

from __future__ import annotations

import onnx
from onnx import helper

from st3fx.onnx_passes.plain_operators import is_ours
from st3fx.runtime import operators


def blocked_values(graph: onnx.GraphProto) -> dict[str, int]:
    """Name -> true number of channels, for the values in that layout.

    What has one input, and is an operator of ONNX, computes position by position: it takes the
    layout on.
    """
    found: dict[str, int] = {}
    sizes = {item.name: tuple(item.dims) for item in graph.initializer}
    for node in graph.node:
        inputs = [found[name] for name in node.input if name in found]
        if not is_ours(node) or operators.current_name(node.op_type) == operators.ADD:
            channels = max(inputs, default=0)
        else:
            channels = _channels(node, sizes)
        if channels:
            found |= dict.fromkeys(node.output, channels)
    return found


def _channels(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> int:
    """Channels of the output of an operator of ours where it is blocked, else 0."""
    about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if b"blocked" not in (about.get("output_layout"), about.get("layout")):
        return 0
    if node.op_type == operators.SPARSE_CONV:
        return sizes[node.input[3]][0] - 1
    channels = about["channels"]
    return sum(channels) if isinstance(channels, list) else int(channels)
