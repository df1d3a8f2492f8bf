"""Writes a graph in an older opset, down to 13, which runtimes of the last five years ask for.

Most operators that were revised since then took in more types, and are what they were for those of
before: the definitions of both versions tell. What changed otherwise is in a table
(``REWRITES``). What neither covers is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from st3fx.passes.onnx.graph_pass import GraphPass
from st3fx.passes.onnx.values import constant, take_place

Constant = np.ndarray[Any, np.dtype[Any]]


class TooNewError(Exception):
    """An operator that has no form in the older opset, and why."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node.op_type}: {reason}")


NEUTRAL: Mapping[tuple[str, str], Any] = {
    **{(op, "layout"): 0 for op in ("GRU", "LSTM", "RNN")},
    ("BatchNormalization", "training_mode"): 0,
    ("LpPool", "ceil_mode"): 0,
    ("ScatterElements", "reduction"): "none",
    ("ScatterND", "reduction"): "none",
    # A shape that is computed holds a 0 for a tensor without values alone; then 0 copies that size.
    ("Reshape", "allowzero"): 0,
}
"""Operator and attribute -> the value that says what it did before it had the attribute."""


@dataclass(frozen=True)
class Rewrite:
    """An operator that is written otherwise.

    Attributes:
        since: The first opset that has it as it is.
        apply: Called with the node and the opset that is asked for; changes the graph in place.
    """

    since: int
    apply: Callable[[ir.Node, int], None]


class _Tape:
    """New nodes before one that goes.

    Their names are made from that of its output. Names that a graph gives itself are unique in it
    alone: in a branch they would be those of values outside.
    """

    def __init__(self, node: ir.Node) -> None:
        assert node.graph is not None
        self.node, self._graph = node, node.graph
        self._name, self._count = node.outputs[0].name or "", 0

    def __call__(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        self._count += 1
        name = f"{self._name}_older_{self._count}"
        made = ir.node(op, inputs, attributes, name=name)
        made.outputs[0].name = name
        self._graph.insert_before(self.node, made)
        return made.outputs[0]

    def constant(self, array: Constant) -> ir.Value:
        """A value of a Constant node, which may stand in any graph."""
        return self("Constant", [], value=ir.tensor(array))

    def finish(self, value: ir.Value) -> None:
        """Put a value in the place of the node's output."""
        take_place(value, self.node)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _sizes(node: ir.Node, value: ir.Value | None) -> list[Any]:
    if value is None or value.shape is None:
        raise TooNewError(node, "the shape of its input is not known")
    return list(value.shape)


def _reduce(node: ir.Node, target: int) -> None:
    """The axes were an attribute, and none meant all of them."""
    axes = constant(_input(node, 1))
    if _input(node, 1) is not None and axes is None:
        raise TooNewError(node, "its axes are computed")
    keep, noop = (
        node.attributes.get_int("keepdims", 1),
        node.attributes.get_int("noop_with_empty_axes", 0),
    )
    tape = _Tape(node)
    if axes is None or not axes.size:
        made = (
            tape("Identity", [node.inputs[0]])
            if noop else tape(node.op_type, [node.inputs[0]], keepdims=keep)
        )  # fmt: skip
    else:
        numbers = [int(axis) for axis in axes.reshape(-1)]
        made = tape(node.op_type, [node.inputs[0]], keepdims=keep, axes=numbers)
    tape.finish(made)


def _split(node: ir.Node, target: int) -> None:
    """Parts were equal, or their sizes an input."""
    parts = node.attributes.pop("num_outputs", None)
    if parts is None:
        return
    axis = node.attributes.get_int("axis", 0)
    size = _sizes(node, node.inputs[0])[axis]
    count = len(node.outputs)
    if not isinstance(size, int):
        raise TooNewError(node, "the size that it splits is free")
    if size % count:
        whole = -(-size // count)
        sizes = [whole] * (count - 1) + [size - whole * (count - 1)]
        tape = _Tape(node)
        node.resize_inputs(2)
        node.replace_input_with(1, tape.constant(np.array(sizes, np.int64)))


def _pad(node: ir.Node, target: int) -> None:
    """Pad all axes, as it always did."""
    if _input(node, 3) is None:
        return
    axes, pads = constant(node.inputs[3]), constant(_input(node, 1))
    rank = len(_sizes(node, node.inputs[0]))
    if axes is None or pads is None:
        raise TooNewError(node, "its axes or sizes are computed")
    whole = np.zeros(2 * rank, np.int64)
    for index, axis in enumerate(axes.reshape(-1)):
        whole[int(axis) % rank] = pads[index]
        whole[int(axis) % rank + rank] = pads[index + axes.size]
    node.replace_input_with(1, _Tape(node).constant(whole))
    node.resize_inputs(3)


def _resize(node: ir.Node, target: int) -> None:
    """Resize as it did before: all axes, nothing smoothed, stretched."""
    about = node.attributes
    for name, neutral in (("antialias", 0), ("keep_aspect_ratio_policy", "stretch")):
        if name in about and about.pop(name).value != neutral:
            raise TooNewError(node, f"{name} is there from opset 18 on")
    axes = about.pop("axes", None)
    rank = len(_sizes(node, node.inputs[0])) if axes is not None else 0
    if axes is not None and list(axes.value) != list(range(rank)):
        raise TooNewError(node, "axes are there from opset 18 on")


def _layer_norm(node: ir.Node, target: int) -> None:
    """``(x − mean) / √(variance + ε) · scale + bias`` over the last axes, in float32."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        raise TooNewError(node, "its mean or deviation is used")
    x, scale, bias = node.inputs[0], node.inputs[1], _input(node, 2)
    rank, axis = len(_sizes(node, x)), node.attributes.get_int("axis", -1)
    axes = list(range(axis - rank, 0)) if axis >= 0 else list(range(axis, 0))
    tape, kind = _Tape(node), x.dtype if x is not None else None
    narrow = kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    wide = tape("Cast", [x], to=ir.DataType.FLOAT.value) if narrow else x
    double = kind == ir.DataType.DOUBLE
    epsilon = np.array(
        node.attributes.get_float("epsilon", 1e-5), np.float64 if double else np.float32
    )
    centred = tape("Sub", [wide, tape("ReduceMean", [wide], axes=axes, keepdims=1)])
    square = tape("Mul", [centred, centred])
    variance = tape("ReduceMean", [square], axes=axes, keepdims=1)
    deviation = tape("Sqrt", [tape("Add", [variance, tape.constant(epsilon)])])
    made = tape("Div", [centred, deviation])
    made = tape("Cast", [made], to=kind.value) if narrow and kind is not None else made
    made = tape("Mul", [made, scale])
    tape.finish(made if bias is None else tape("Add", [made, bias]))


def _hard_swish(node: ir.Node, target: int) -> None:
    """``x · max(0, min(1, x/6 + 1/2))``."""
    tape, x = _Tape(node), node.inputs[0]
    tape.finish(tape("Mul", [x, tape("HardSigmoid", [x], alpha=1 / 6, beta=0.5)]))


def _mish(node: ir.Node, target: int) -> None:
    """``x · tanh(log(1 + eˣ))``."""
    tape, x = _Tape(node), node.inputs[0]
    tape.finish(tape("Mul", [x, tape("Tanh", [tape("Softplus", [x])])]))


def _cast_like(node: ir.Node, target: int) -> None:
    """A cast to the type of another value."""
    kind = node.inputs[1].dtype if node.inputs[1] is not None else None
    if kind is None:
        raise TooNewError(node, "the type that it casts to is not known")
    tape = _Tape(node)
    tape.finish(tape("Cast", [node.inputs[0]], to=kind.value))


def _shape(node: ir.Node, target: int) -> None:
    """All sizes, then the part that is meant."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    if not start and end is None:
        node.attributes.pop("start", None)
        return
    tape = _Tape(node)
    limits = (start, np.iinfo(np.int64).max if end is None else end.value)
    first, last = (tape.constant(np.array([limit], np.int64)) for limit in limits)
    tape.finish(tape("Slice", [tape("Shape", [node.inputs[0]]), first, last]))


def _reshape(node: ir.Node, target: int) -> None:
    """A 0 copied a size: where the shape is constant, it must have none."""
    shape = constant(_input(node, 1))
    if node.attributes.get_int("allowzero", 0) and shape is not None and not shape.all():
        raise TooNewError(node, "a size is 0")
    node.attributes.pop("allowzero", None)


def _trilu(node: ir.Node, target: int) -> None:
    """A mask of what lies above or below a diagonal; what it leaves out is 0, whatever it was."""
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    if kind is None:
        raise TooNewError(node, "the type of its input is not known")
    tape, x, diagonal = _Tape(node), node.inputs[0], _input(node, 1)
    zero, one = (tape.constant(np.array(n, np.int64)) for n in (0, 1))
    places = []
    for begin, end in ((-2, -1), (-1, np.iinfo(np.int64).max)):
        first, last = (tape.constant(np.array([n], np.int64)) for n in (begin, end))
        size = tape("Squeeze", [tape("Slice", [tape("Shape", [x]), first, last])])
        places.append(tape("Range", [zero, size, one]))
    rows = tape("Unsqueeze", [places[0], tape.constant(np.array([1], np.int64))])
    distance = tape("Sub", [places[1], rows])
    compare = "GreaterOrEqual" if node.attributes.get_int("upper", 1) else "LessOrEqual"
    mask = tape(compare, [distance, zero if diagonal is None else diagonal])
    if kind == ir.DataType.BOOL:
        tape.finish(tape("And", [x, mask]))
    else:
        tape.finish(tape("Where", [mask, x, tape.constant(np.zeros((), kind.numpy()))]))


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

REWRITES: Mapping[str, Rewrite] = {
    **{f"Reduce{name}": Rewrite(18, _reduce) for name in _REDUCTIONS},
    "Split": Rewrite(18, _split),
    "Pad": Rewrite(18, _pad),
    "Resize": Rewrite(18, _resize),
    "Mish": Rewrite(18, _mish),
    "LayerNormalization": Rewrite(17, _layer_norm),
    "CastLike": Rewrite(15, _cast_like),
    "Shape": Rewrite(15, _shape),
    "Reshape": Rewrite(14, _reshape),
    "HardSwish": Rewrite(14, _hard_swish),
    "Trilu": Rewrite(14, _trilu),
}
"""Operators of which more than the types changed."""


LOWEST = 13
"""As far down as the table goes."""


class LowerOpset(GraphPass):
    """Rewrites the operators that are not in an older opset as they are.

    The model has no functions; its opset is 18, or between that and the target.
    """

    def __init__(self, target: int) -> None:
        """Aim at an opset, from :data:`LOWEST` on."""
        super().__init__()
        self._target = target

    def apply(self, model: ir.Model) -> bool:
        """Rewrite what has changed since.

        Raises:
            TooNewError: Names an operator that has no form there.
        """
        source, target = model.opset_imports[""], self._target
        used = {name for name, value in model.graph.initializers.items() if value.uses()}
        for node in list(_nodes(model)):
            rewrite = REWRITES.get(node.op_type)
            if rewrite is not None and target < rewrite.since <= source:
                self.changed.append(str(node.name))
                rewrite.apply(node, target)
            else:
                _fit(node, source, target)
        for name in used:  # axes that are attributes now
            if not model.graph.initializers[name].uses():
                model.graph.initializers.pop(name)
        model.opset_imports[""] = target
        return target != source


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
