"""Writes sparse operators as ONNX's own again: the same model with its zeros, for any runtime.

Layouts are a matter of memory alone: here every tensor of images is what ONNX says it is. Which
values of a written graph are in another layout, that of ``st3fx/runtime/ops.md``,
``blocked_values`` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common
from onnx_ir.serde import SerdeError

from st3fx.errors import describe
from st3fx.passes.onnx.graph_pass import GraphPass, hushed
from st3fx.passes.onnx.plain_quant import PLAIN_QUANT
from st3fx.passes.onnx.tape import Tape
from st3fx.passes.onnx.values import take_place
from st3fx.runtime import operators
from st3fx.runtime.inference import DOMAIN, HINT

OURS = (DOMAIN, HINT)
"""Domains of our operators."""


def is_ours(node: onnx.NodeProto | ir.Node) -> bool:
    """Whether a node is an operator of ours."""
    return node.domain in OURS


def plain_proto(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without operators of ours; the given one where it has none.

    Raises:
        KeyError: For an operator that is not in ``ops.md``.
        ValueError: For weights that are not constant or do not fit, and what onnx_ir cannot read.
    """
    if not any(is_ours(node) for node in model.graph.node):
        return model
    with hushed():
        try:
            graph = ir.from_proto(model)
            PlainOperators()(graph)
            return ir.to_proto(graph)
        except (SerdeError, TypeError, IndexError, AttributeError) as error:
            # Of what a file says that is not as it is written here.
            raise ValueError(describe(error.__cause__ or error)) from error


class PlainOperators(GraphPass):
    """Replaces sparse operators by those of ONNX.

    Weights get the name that they had before. Shapes between the nodes are left out: those of
    blocked tensors are not true any more.
    """

    def apply(self, model: ir.Model) -> bool:
        """Replace all of them.

        Raises:
            KeyError: For an operator that is not in ``ops.md``.
            ValueError: For weights that are not constant or do not fit.
        """
        graph = model.graph
        ours = [node for node in graph if is_ours(node)]
        if not ours:
            return False
        self.changed = [str(node.name) for node in ours]
        for key in [key for key in model.functions if key[0] == DOMAIN]:
            del model.functions[key]
        _forget_shapes(ours)
        for node in ours:
            take_place(_PLAIN[operators.current_name(node.op_type)](Tape(graph, node)), node)
        _forget_shapes(graph)
        for domain in OURS:
            model.opset_imports.pop(domain, None)
        common.RemoveUnusedNodesPass()(model)
        return True


def _forget_shapes(nodes: Iterable[ir.Node]) -> None:
    """Leave out the shapes of the nodes' outputs, but for the graph's own."""
    for node in nodes:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def _sparse_conv(tape: Tape) -> ir.Value:
    group = tape.about.get_int("group", 1)
    kernel = tuple(tape.about.get_ints("kernel_shape"))
    channels = tape.about.get_int("channels") // group
    weight = tape.weight(channels * kernel[0] * kernel[1], lambda k: (k, channels, *kernel))
    made = tape("Conv", [tape.input(0), weight, tape.input(4)], group=group, **tape.window())
    return tape.finish(made, tape.input(5))


def _depthwise_conv(tape: Tape) -> ir.Value:
    stands_for = tape.about.get_string("stands_for", "convolution")
    if stands_for != "convolution":
        return tape.finish(_per_channel(tape, stands_for), tape.input(3))
    inputs = [tape.input(index) for index in range(3)]
    made = tape("Conv", inputs, group=tape.about.get_int("channels"), **tape.window())
    return tape.finish(made, tape.input(3))


def _per_channel(tape: Tape, stands_for: str) -> ir.Value:
    """A batch norm, or a scale, that was written as a convolution with one tap."""
    parts = [
        ir.convenience.get_const_tensor(value) if (value := tape.input(index)) else None
        for index in (1, 2)
    ]
    if parts[0] is None:
        raise ValueError(f"the weights of {tape.node.name} are not constant")
    factor, source = parts[0].numpy().reshape(-1), tape.node.inputs[1]
    name = str(source.name if source is not None else "").removesuffix(".weight")
    if stands_for == "scale":
        scale = tape.constant(f"{name}.scale", factor.reshape(-1, 1, 1))
        return tape("Mul", [tape.input(0), scale])
    zeros = np.zeros_like(factor)
    shift = zeros if parts[1] is None else parts[1].numpy()
    arrays = {"scale": factor, "shift": shift, "mean": zeros, "variance": zeros + 1}
    values = [tape.constant(f"{name}.{key}", array) for key, array in arrays.items()]
    return tape("BatchNormalization", [tape.input(0), *values], epsilon=0.0)


def _sparse_linear(tape: Tape) -> ir.Value:
    features, value, bias = tape.about.get_int("features"), tape.input(0), tape.input(4)
    weight = tape.weight(features, lambda k: (k, features))
    if tape.about.get_string("side", "right") == "left":
        made = tape("MatMul", [weight, value])
        if bias is not None:
            made = tape("Add", [made, tape("Unsqueeze", [bias, tape.constant("last", _LAST)])])
        return tape.finish(made)
    if value is not None and value.shape is not None and len(value.shape) == 2:
        return tape.finish(tape("Gemm", [value, weight, bias], transB=1))
    made = tape("MatMul", [value, tape("Transpose", [weight], perm=[1, 0])])
    return tape.finish(made if bias is None else tape("Add", [made, bias]))


def _max_pool(tape: Tape) -> ir.Value:
    return tape("MaxPool", [tape.input(0)], **tape.window("ceil_mode"))


def _average_pool(tape: Tape) -> ir.Value:
    return tape("AveragePool", [tape.input(0)], **tape.window("ceil_mode", "count_include_pad"))


_LAST = np.array([-1], dtype=np.int64)

_PLAIN: dict[str, Callable[[Tape], ir.Value]] = {
    operators.SPARSE_CONV: _sparse_conv,
    operators.DEPTHWISE_CONV: _depthwise_conv,
    operators.SPARSE_LINEAR: _sparse_linear,
    operators.MAX_POOL: _max_pool,
    operators.AVERAGE_POOL: _average_pool,
    operators.GLOBAL_AVERAGE_POOL: lambda tape: tape("GlobalAveragePool", [tape.input(0)]),
    operators.ADD: lambda tape: tape.finish(tape("Add", [tape.input(0), tape.input(1)])),
    operators.CHANNEL_SCALE: lambda tape: tape("Mul", [tape.input(0), tape.input(1)]),
    operators.CONCAT: lambda tape: tape("Concat", tape.node.inputs, axis=1),
    operators.LAYOUT: lambda tape: tape("Identity", [tape.input(0)]),
    **PLAIN_QUANT,
}
"""Operator of ours -> what ONNX has for it."""


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
