"""One node of an ONNX graph on its own: what a rule sees of it, its values and its shapes.

Its values are computed from constants, its shapes inferred from shapes. ONNX Runtime does that as
for the file's user, for its own operators too and for every opset that it runs. What it refuses
(types that it has no kernel for) the reference implementation of onnx may compute.
"""

from __future__ import annotations

import ast
import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from st3fx.flops.collect import Collector
from st3fx.flops.operand import Counted, Operand
from st3fx.passes.onnx.normal_form import bodies

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


@dataclass(frozen=True)
class OnnxCall:
    """A node whose shapes are known.

    Attributes:
        op: Operator of the standard domain, ``Conv``.
        attributes: As the node has them; texts decoded.
        inputs: ``None`` for an optional one that is left out.
        outputs: The same.
        integers: Values of inputs that are constant integers, by position.
    """

    op: str
    attributes: dict[str, Any]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand | None, ...]
    integers: dict[int, tuple[int, ...]]

    @property
    def out(self) -> Operand:
        """The first output."""
        out = self.outputs[0]
        assert out is not None
        return out

    @property
    def x(self) -> Operand:
        """The first input."""
        return self.tensor(0)

    def tensor(self, index: int) -> Operand:
        """An input that is there."""
        operand = self.inputs[index]
        assert operand is not None
        return operand

    def optional(self, index: int) -> Operand | None:
        """An input that may be left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def sizes(self, name: str, dims: int) -> list[int]:
        """An attribute with one number per spatial dimension, ones if it is left out."""
        return list(self.attributes.get(name) or [1] * dims)

    def axes(self, index: int) -> tuple[int, ...] | None:
        """The axes of a reduction: an attribute, or, since opset 13 or 18, an input."""
        given: Sequence[int] | None = self.attributes.get("axes", self.integers.get(index))
        if given is None and not self.attributes.get("noop_with_empty_axes"):
            return tuple(range(len(self.x.shape)))
        return None if given is None else tuple(given)


@dataclass(frozen=True)
class Entry:
    """One node, or something that cannot be counted.

    Attributes:
        counted: What its rule gave.
        inputs: What it reads.
        outputs: What it writes.
        module: Where the model has it.
        missing: Its name, where it has no rule or its shapes are not known.
        times: How often it runs.
    """

    counted: tuple[Counted, ...] = ()
    inputs: tuple[Operand, ...] = ()
    outputs: tuple[Operand, ...] = ()
    module: str = ""
    missing: str = ""
    times: int = 1

    def add(self, collector: Collector) -> None:
        """Add it up."""
        if self.missing:
            collector.miss(self.missing, self.times)
        else:
            collector.add(self.counted, self.inputs, self.outputs, self.module, self.times)


Array = npt.NDArray[Any]

_SILENT = 4
_FED = 1 << 16
"""Bytes from which on a constant is handed over, where it can be, and not written into a model."""

_SECONDS = 20.0
"""After which a loop over constants is given up."""


@dataclass(frozen=True)
class Context:
    """What a node needs to know of its file.

    Attributes:
        opsets: Domain -> version.
        ir_version: Of the file.
    """

    opsets: Mapping[str, int]
    ir_version: int

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Context:
        """The context of a model's nodes."""
        opsets = {item.domain: item.version for item in model.opset_import}
        opsets[""] = opsets.pop("ai.onnx", opsets.get("", 1))
        # An old file may have its weights among its inputs; what is made here has not.
        return cls(opsets, max(model.ir_version, 4))


def compute(
    node: onnx.NodeProto, context: Context, arrays: Mapping[str, Array]
) -> list[Any] | None:
    """The outputs of a node whose inputs are all constant, those that it leaves out among them.

    Args:
        node: The node.
        context: What it needs to know of its file.
        arrays: Name -> values of all that it reads.

    Returns:
        One array for each output that has a name; ``None`` where nothing can compute it.
    """
    with contextlib.suppress(Exception):
        return _by_runtime(node, context, arrays)
    if next(bodies(node), None) is not None or node.domain not in ("", "ai.onnx"):
        return None
    with contextlib.suppress(Exception):
        return _by_reference(node, context, arrays)
    return None


def infer(
    node: onnx.NodeProto,
    context: Context,
    types: Mapping[str, onnx.TypeProto],
    arrays: Mapping[str, Array],
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs as ONNX Runtime sees them: of operators of its own.

    Args:
        node: The node.
        context: What it needs to know of its file.
        types: Name -> type of all that it reads.
        arrays: Name -> values of those that are constant.

    Returns:
        Name -> type; nothing where it does not know the operator.
    """
    written = {name: array for name, array in arrays.items() if array.nbytes < _FED}
    inputs = [
        helper.make_value_info(name, kind) for name, kind in types.items() if name not in written
    ]
    try:
        session = _session(_model(node, context, inputs, written))
        found = {port.name: port for port in session.get_outputs()}
        return {name: _type(port) for name, port in found.items()}
    except Exception:  # noqa: BLE001 (whatever it does not know stays unknown)
        return {}


def _type(port: Any) -> onnx.TypeProto:
    name = port.type.removeprefix("tensor(").removesuffix(")")
    names = {"float": "FLOAT", "double": "DOUBLE"}
    element = onnx.TensorProto.DataType.Value(names.get(name, name.upper()))
    # A size without a name is None there.
    return helper.make_tensor_type_proto(element, [size or "" for size in port.shape])


def _by_runtime(node: onnx.NodeProto, context: Context, arrays: Mapping[str, Array]) -> list[Any]:
    fed = {
        name: array for name, array in arrays.items()
        if array.nbytes >= _FED and array.dtype.isbuiltin == 1 and array.dtype.kind in "biuf"
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in fed.items()
    ]
    written = {name: array for name, array in arrays.items() if name not in fed}
    session = _session(_model(node, context, inputs, written))
    options = onnxruntime.RunOptions()
    options.log_severity_level = _SILENT
    with _bounded(options) if next(bodies(node), None) is not None else contextlib.nullcontext():
        outputs: list[Any] = session.run(None, fed, options)
    return outputs


@contextlib.contextmanager
def _bounded(options: Any) -> Iterator[None]:
    """End a run that takes too long."""
    timer = threading.Timer(_SECONDS, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _by_reference(node: onnx.NodeProto, context: Context, arrays: Mapping[str, Array]) -> list[Any]:
    names = list(dict.fromkeys(name for name in node.input if name))
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_empty_tensor_value_info(name) for name in names],
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
    )
    evaluator = ReferenceEvaluator(graph, opsets=dict(context.opsets))
    with np.errstate(all="ignore"):
        return list(evaluator.run(None, {name: arrays[name] for name in names}))


def _model(
    node: onnx.NodeProto,
    context: Context,
    inputs: list[onnx.ValueInfoProto],
    written: Mapping[str, Array],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "one",
        inputs,
        [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        [numpy_helper.from_array(array, name) for name, array in written.items()],
    )
    opsets = [helper.make_opsetid(*item) for item in context.opsets.items()]
    if node.domain not in context.opsets:
        opsets.append(helper.make_opsetid(node.domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=context.ir_version)


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
