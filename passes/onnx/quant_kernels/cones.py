"""What needs a look further up the graph: functions of one number, and moves of channels.

The *cone* of a ``QuantizeLinear`` is what computes its input from quantized tensors. Where all in
it treats each number by itself and all begins at one tensor, 256 values say what it does, and ONNX
Runtime computes them. Where it only moves numbers, numbered channels say where they went.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from st3fx.passes.onnx.quant_kernels.qdq import Numbers, numbers, quantized
from st3fx.passes.onnx.quant_kernels.quant_role import Picture, QuantRole, Step, picture
from st3fx.passes.onnx.values import Array, constant, is_op
from st3fx.runtime import operators
from st3fx.runtime.costs import QuantWork

ELEMENTWISE = (
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "QuickGelu",
    "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh",
)  # fmt: skip
"""Operators that treat each number by itself, where their other inputs are single numbers."""

_MOVES = (
    "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""Operators that only move numbers."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")

IMAGE = 4
"""Dimensions of images: a number of more would give the result more."""

_LARGEST = 1 << 26
"""Numbers of the images by which moves of pixels are followed."""

_DEPTH = 64
"""Nodes that a cone may have."""

Source = tuple[ir.Value, Numbers]


@dataclass(frozen=True)
class Cone:
    """What computes a value.

    Attributes:
        sources: The quantized tensors that it begins at, each once for each meaning of its bytes.
        nodes: In the graph's order.
    """

    sources: tuple[Source, ...]
    nodes: tuple[ir.Node, ...]


def cone(
    value: ir.Value, accepts: Callable[[ir.Node], bool], goes_through: Callable[[Source], bool]
) -> Cone | None:
    """The nodes behind a value up to quantized tensors; ``None`` where one is not accepted.

    Args:
        value: A float value.
        accepts: Whether a node may be in it.
        goes_through: Whether to go on behind a quantized tensor.
    """
    sources: dict[ir.Value, Source] = {}
    nodes: dict[ir.Node, None] = {}
    todo, seen = [value], set[ir.Value]()
    while todo:
        at = todo.pop()
        if at in seen or constant(at) is not None:
            continue
        seen.add(at)
        node, source = at.producer(), quantized(at)
        if node is None or len(nodes) > _DEPTH:
            return None
        nodes[node] = None
        if source is not None and not goes_through(source):
            sources[at] = source
        elif source is not None:
            quantize = source[0].producer()
            assert quantize is not None
            nodes[quantize] = None
            todo += [v for v in quantize.inputs[:1] if v is not None]
        elif accepts(node):
            todo += [v for v in node.inputs if v is not None]
        else:
            return None
    graph = next((node.graph for node in nodes), None)
    if graph is None:  # a constant
        return None
    ordered = tuple(node for node in graph if node in nodes)
    unique = {(id(tensor), about): (tensor, about) for tensor, about in sources.values()}
    return Cone(tuple(unique.values()), ordered)


def function(quantize: ir.Node, after: Numbers) -> QuantRole | None:
    """A function of one quantized tensor → ``QuantLookup``."""
    value = quantize.inputs[0]
    assert value is not None
    through: frozenset[ir.Value] = frozenset()
    for _ in range(8):
        found = cone(value, _is_elementwise, _behind(through))
        if found is None or not found.sources:
            return None
        tensors = {source[0] for source in found.sources}
        if len(tensors) == 1:
            break
        further = {tensor for tensor in tensors if _is_function(tensor)}
        if not further:
            return None
        through |= further
    else:
        return None
    (tensor,) = tensors
    if picture(tensor) is None:
        return None
    table = _table(tensor, [*found.nodes, quantize], quantize.outputs[0])
    if table is None:
        return None
    seen = picture(tensor)
    assert seen is not None
    name = str(quantize.outputs[0].name)
    step = Step(operators.QUANT_LOOKUP, (tensor,), {f"{name}.table": table},
                channels=seen.channels)  # fmt: skip
    kinds = (n.op_type for n in reversed(found.nodes) if not is_op(n, *_CONVERSIONS))
    work = QuantWork(moved=2 * seen.channels * seen.positions)
    return QuantRole(quantize, (step,), after, (tensor,), name,
                     next(kinds, "QuantizeLinear"), work)  # fmt: skip


def _behind(tensors: frozenset[ir.Value]) -> Callable[[Source], bool]:
    return lambda source: source[0] in tensors


def _is_elementwise(node: ir.Node) -> bool:
    if node.op_type not in ELEMENTWISE or node.domain not in ("", "com.microsoft"):
        return False
    single = (constant(value) for value in node.inputs)
    return len(node.outputs) == 1 and all(
        array is None or (array.size == 1 and array.ndim <= IMAGE) for array in single
    )


def _is_function(tensor: ir.Value) -> bool:
    """Whether a quantized tensor is made of others number by number."""
    node = tensor.producer()
    if numbers(node) is None or node is None or not is_op(node, "QuantizeLinear"):
        return False
    value = node.inputs[0]
    return value is not None and cone(value, _is_elementwise, lambda _: False) is not None


def requantized(before: Numbers, after: Numbers) -> Array:
    """The table from bytes of one meaning to those of another, as ONNX computes it."""
    values = (np.arange(256) - before.zero).astype(np.float32) * np.float32(before.scale)
    places = np.rint(values / np.float32(after.scale)) + after.zero
    table: Array = np.clip(places, 0, 255).astype(np.uint8)
    return table


def _table(tensor: ir.Value, nodes: Sequence[ir.Node], output: ir.Value) -> Array | None:
    """What 256 bytes become; ``None`` where ONNX Runtime refuses the nodes."""
    signed = tensor.dtype == ir.DataType.INT8
    given = np.arange(256).astype(np.uint8)
    feed = (given.astype(np.int16) - 128).astype(np.int8) if signed else given
    result = evaluate(nodes, {tensor: feed}, output)
    if result is None or result.size != 256 or result.dtype not in (np.uint8, np.int8):
        return None
    wide = result.reshape(-1).astype(np.int16)
    return (wide + 128 * (result.dtype == np.int8)).astype(np.uint8)


def evaluate(
    nodes: Iterable[ir.Node], feeds: dict[ir.Value, Array], output: ir.Value
) -> Array | None:
    """What some nodes of a graph give in ONNX Runtime, as they stand; ``None`` where it refuses."""
    nodes = list(nodes)
    protos = [ir.to_proto(node) for node in nodes]
    held: dict[str, onnx.TensorProto] = {}
    for value in (value for node in nodes for value in node.inputs):
        array = constant(value)
        if value is not None and array is not None:
            held[str(value.name)] = onnx.numpy_helper.from_array(array, str(value.name))
    inputs = [
        onnx.helper.make_tensor_value_info(
            str(value.name), int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype)), array.shape
        )
        for value, array in feeds.items()
    ]
    graph = onnx.helper.make_graph(
        protos, "cone", inputs,
        [onnx.helper.make_empty_tensor_value_info(str(output.name))],
        [tensor for name, tensor in held.items()],
    )  # fmt: skip
    owner = nodes[0].graph
    versions = owner.opset_imports if owner is not None else {}
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        result: Array = session.run(None, {str(v.name): array for v, array in feeds.items()})[0]
    except Exception:  # noqa: BLE001 (what ONNX Runtime raises has no common root)
        return None
    return result


def moved(quantize: ir.Node, after: Numbers) -> QuantRole | None:
    """Channels of quantized tensors in another order → ``QuantChannels``."""
    value, taken = quantize.inputs[0], picture(quantize.outputs[0])
    if value is None or taken is None:
        return None
    found = cone(value, _moves, lambda source: _goes_on(source, after))
    if found is None or not found.sources:
        return None
    pictures = [picture(tensor) for tensor, _ in found.sources]
    tensors = [tensor for tensor, _ in found.sources]
    if any(one is None for one in pictures) or len(set(tensors)) < len(tensors):
        return None
    seen = [one for one in pictures if one is not None]
    sources = _places(quantize, found, seen, taken.channels)
    if sources is None:
        return None
    name = str(quantize.outputs[0].name)
    tables = np.stack([requantized(before, after) for _, before in found.sources])
    same = all(before.means == after.means for _, before in found.sources)
    counts = tuple(one.channels for one in seen)
    more = {} if sources == tuple(range(sum(counts))) else {"sources": sources}
    step = Step(
        operators.QUANT_CHANNELS, tuple(tensors), {} if same else {f"{name}.tables": tables},
        {"channels": counts, **more}, taken.channels,
    )  # fmt: skip
    work = QuantWork(moved=2 * taken.channels * taken.positions)
    return QuantRole(quantize, (step,), after, tuple(tensors), name,
                     found.nodes[-1].op_type, work)  # fmt: skip


def _moves(node: ir.Node) -> bool:
    return is_op(node, *_MOVES) and not any(
        value is not None and quantized(value) is None and value.dtype == ir.DataType.FLOAT
        and constant(value) is not None
        for value in node.inputs
    )  # fmt: skip


def _goes_on(source: Source, after: Numbers) -> bool:
    """Whether a tensor is a stage between moves: no images, and bytes of the same meaning."""
    tensor, about = source
    maker = tensor.producer()
    made = numbers(maker)
    return (
        picture(tensor) is None and made is not None and is_op(maker, "QuantizeLinear")
        and about.means == made.means == after.means
    )  # fmt: skip


def _places(
    quantize: ir.Node, found: Cone, seen: Sequence[Picture], channels: int
) -> tuple[int, ...] | None:
    """Which channel of all sources each output channel is; ``None`` where more moves than those."""
    nodes = [node for node in found.nodes if not is_op(node, *_CONVERSIONS)]
    value, size = quantize.inputs[0], (seen[0].height, seen[0].width)
    if not nodes or value is None or any((one.height, one.width) != size for one in seen):
        return None
    whole = all(_stays_inside(node, free=True) for node in nodes)
    if not whole and (None in size or not all(_stays_inside(n, free=False) for n in nodes)):
        return None
    # What takes whole channels does so whatever the images are: small ones tell.
    batch = next(iter(found.sources[0][0].shape or (2,)))
    counts = [one.channels for one in seen]
    height, width = (2 if side is None or whole else side for side in size)
    number = batch if isinstance(batch, int) and not whole else 2
    shape = (number, sum(counts), height, width)
    if math.prod(shape) > _LARGEST:
        return None
    given = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    parts = np.split(given, np.cumsum(counts)[:-1], axis=1)
    result = _moved_numbers(found, nodes, parts, value)
    if result is None or result.shape != (number, channels, height, width):
        return None
    places = result[0, :, 0, 0] // (height * width)
    if places.max(initial=0) >= sum(counts):  # of another image
        return None
    if any((result[:, at] != given[:, place]).any() for at, place in enumerate(places)):
        return None
    return tuple(map(int, places))


def _stays_inside(node: ir.Node, *, free: bool) -> bool:
    """Whether a node takes parts of no batch, and of no image whose size is free."""
    if not is_op(node, "Gather", "Slice", "Split", "Concat"):
        return not free or is_op(node, "Identity")
    source = node.inputs[0]
    rank = len(source.shape) if source is not None and source.shape is not None else 0
    if node.op_type == "Slice":
        listed = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    else:
        listed = np.array([node.attributes.get_int("axis", 0)])
    if listed is None or not rank:
        return False
    axes = {int(axis) % rank for axis in listed.reshape(-1)}
    return axes == {1} if free else 0 not in axes


def _moved_numbers(
    found: Cone, nodes: Sequence[ir.Node], parts: Sequence[Array], value: ir.Value
) -> Array | None:
    """The float value of a cone without its conversions, for given images."""
    renamed = ir.Graph([], [], nodes=[], opset_imports=dict(_versions(nodes)), name="moves")
    now: dict[ir.Value, ir.Value] = {}
    feeds: dict[ir.Value, Array] = {}
    for (tensor, _), part in zip(found.sources, parts, strict=True):
        feed = ir.Value(name=f"{tensor.name}.moved")
        feeds[feed] = np.ascontiguousarray(part)
        now[tensor] = feed
    for node in found.nodes:
        if is_op(node, *_CONVERSIONS):
            source = node.inputs[0]
            assert source is not None
            now[node.outputs[0]] = now.get(source, source)
            continue
        inputs = [None if v is None else now.get(v, v) for v in node.inputs]
        copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()),
                       num_outputs=len(node.outputs), version=node.version)  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, now[old] = old.name, new
        renamed.append(copy)
    copies = list(renamed)
    result = evaluate(copies, feeds, now[value])
    for copy in copies:  # no uses of the graph's own values stay behind
        for index in range(len(copy.inputs)):
            copy.replace_input_with(index, None)
    return result


def _versions(nodes: Sequence[ir.Node]) -> dict[str, int]:
    owner = nodes[0].graph
    return dict(owner.opset_imports) if owner is not None else {}
