"""Leaves height and width of input images open.

The operators take any size, but a graph carries the shapes of the example that it was exported
with. Here they become names. Two sizes have one name only where they are equal whatever the input
is: ONNX Runtime reuses memory between tensors whose names are the same.
"""

from __future__ import annotations

import onnx_ir as ir

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.values import image
from st3fx.runtime import operators
from st3fx.runtime.inference import DOMAIN
from st3fx.runtime.operators import KEY, example_text

Dim = int | str
Size = tuple[Dim, Dim]
"""Height and width: names, or 1."""

_WINDOWS = (
    "Conv", "MaxPool", "AveragePool", operators.SPARSE_CONV, operators.DEPTHWISE_CONV,
    operators.MAX_POOL, operators.AVERAGE_POOL,
)  # fmt: skip
_MEANS = (
    "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax",
    operators.GLOBAL_AVERAGE_POOL,
)  # fmt: skip
_KEEPING = """
Add BatchNormalization Cast ChannelScale Clip Concat Div Elu Gelu HardSigmoid HardSwish Identity
ImageAdd ImageConcat Layout LeakyRelu Mul Relu Sigmoid Sub Swish Tanh
"""
"""Operators whose output has the size of their largest input."""


class FreeSizes(GraphPass):
    """Names the sizes of all images, and forgets other shapes between nodes.

    Attributes:
        changed: Names of the inputs whose size is open now; none where no input is an image.
    """

    def apply(self, model: ir.Model) -> bool:
        """Open the inputs, and follow their sizes through the graph."""
        names = _Names()
        noted = example_text([_example(value) for value in model.graph.inputs])
        for value in model.graph.inputs:
            picture = image(value)
            if picture is not None and picture.positions > 1:
                size = (f"{value.name}_height", f"{value.name}_width")
                names.sizes[value] = size
                value.shape = ir.Shape([*list(value.shape or ())[:2], *size])
        self.changed = [str(value.name) for value in names.sizes]
        if not self.changed:
            return False
        model.metadata_props[KEY] = noted
        for node in model.graph:
            for value in node.outputs:
                _rename_sizes(names, node, value)
        return True


def _rename_sizes(names: _Names, node: ir.Node, value: ir.Value) -> None:
    """Give an output of a node its names for sizes, or no shape where it is no image."""
    before: list[Dim | ir.SymbolicDim] = list(value.shape or ())
    size = names.follow(node, value, before) if image(value) is not None else None
    if size is not None:
        channels = names.channels(node, value, before[1], size)
        value.shape = ir.Shape([before[0], channels, *size])
    elif not value.is_graph_output():
        value.shape = None


def _example(value: ir.Value) -> tuple[int, ...]:
    """The shape of an input, free sizes being 1."""
    return tuple(size if isinstance(size, int) else 1 for size in value.shape or ())


class _Names:
    """Follows sizes, and what is blocked, through a graph."""

    def __init__(self) -> None:
        self.sizes: dict[ir.Value, Size] = {}
        self._blocked: dict[ir.Value, int] = {}  # value in the blocked layout -> its channels
        self._short: dict[str, str] = {}

    def follow(self, node: ir.Node, value: ir.Value, before: list[Dim | ir.SymbolicDim]) -> Size:
        """The size of a node's output; names of its own where nothing is known."""
        known = [self.sizes[v] for v in node.inputs if v is not None and v in self.sizes]
        largest = {size for size in known if size != (1, 1)} or set(known)
        own: Size = (f"{value.name}_height", f"{value.name}_width")
        size = own
        if before[2:] == [1, 1] and node.op_type in _MEANS:
            size = (1, 1)
        elif node.op_type in _WINDOWS and known and _kernel(node):
            size = self._moved(node, known[0])
        elif node.op_type in _KEEPING.split() and len(largest) == 1:
            (size,) = largest
        self.sizes[value] = size
        return size

    def channels(
        self, node: ir.Node, value: ir.Value, declared: Dim | ir.SymbolicDim, size: Size
    ) -> Dim | ir.SymbolicDim:
        """The second dimension: that of a blocked tensor depends on its size."""
        count = self._blocked_channels(node)
        if not count:
            return declared
        self._blocked[value] = count
        return self._name(f"storage {count} {size}", "storage")

    def _blocked_channels(self, node: ir.Node) -> int:
        """Channels of a node's output where it is blocked, else 0."""
        about = node.attributes
        if node.domain != DOMAIN or node.op_type == operators.ADD:
            inputs = [value for value in node.inputs if value is not None]
            return max((self._blocked.get(value, 0) for value in inputs), default=0)
        layout = about.get_string("output_layout") or about.get_string("layout")
        if layout != "blocked":
            return 0
        if node.op_type == operators.SPARSE_CONV:
            starts = node.inputs[3]
            assert starts is not None
            assert starts.const_value is not None
            return int(starts.const_value.size) - 1
        if node.op_type == operators.CONCAT:
            return sum(about.get_ints("channels", ()))
        return about.get_int("channels", 0)

    def _moved(self, node: ir.Node, size: Size) -> Size:
        """The size after a window has moved over an image."""
        about = node.attributes
        kernel = _kernel(node)
        strides, dilations = (about.get_ints(name, (1, 1)) for name in ("strides", "dilations"))
        pads, ceil = about.get_ints("pads", (0, 0, 0, 0)), about.get_int("ceil_mode", 0)
        moved: list[Dim] = []
        for axis, name in enumerate(size):
            lost = dilations[axis] * (kernel[axis] - 1) - pads[axis] - pads[axis + 2]
            keeps = strides[axis] == 1 and lost == 0
            formula = f"({name}-{lost})/{strides[axis]} {ceil}"
            moved.append(name if keeps else self._name(formula, "size"))
        return moved[0], moved[1]

    def _name(self, formula: str, kind: str) -> str:
        return self._short.setdefault(formula, f"{kind}_{len(self._short)}")


def _kernel(node: ir.Node) -> tuple[int, ...]:
    """The size of a window; nothing where it moves by rules that are not followed here."""
    about = node.attributes
    if about.get_string("auto_pad", "NOTSET") != "NOTSET":
        return ()
    if "kernel_shape" in about:
        return tuple(about.get_ints("kernel_shape"))
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = list(weight.shape or ())[2:] if weight is not None else []
    return tuple(size for size in shape if isinstance(size, int))
