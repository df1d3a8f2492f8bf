"""A lowered file beside the QDQ file that it was made from, tensor by tensor.

The QDQ file runs in ONNX Runtime without optimisations: in float32, which saturates nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from st3fx import runtime
from st3fx.passes.onnx.quant_kernels.lower import lower_quantized
from st3fx.passes.onnx.quant_kernels.quant_report import QuantReport
from st3fx.runtime.costs import QuantCosts
from st3fx.runtime.layout import from_blocked_bytes, to_blocked_bytes
from tests.runtime.quant_reference import reference

Array = NDArray[Any]

OURS_WIN = QuantCosts(dense=1.0, dense_depthwise=1.0, dense_weight=1.0)
"""Every layer that has a kernel of ours gets it."""


@dataclass(frozen=True)
class Agreement:
    """A lowered file that agrees.

    Attributes:
        model: The lowered file.
        report: What was chosen.
        steps: Quantized tensor -> largest difference, in steps of its scale.
        outputs: Of the lowered file.
        plain: Of the QDQ file.
    """

    model: onnx.ModelProto
    report: QuantReport
    steps: Mapping[str, int]
    outputs: list[Array]
    plain: list[Array]


def lowered(
    model: onnx.ModelProto, costs: QuantCosts = OURS_WIN
) -> tuple[onnx.ModelProto, QuantReport]:
    """A lowered copy, which ``onnx.checker`` accepts, and what was chosen."""
    before = model.SerializeToString()
    found = lower_quantized(model, costs)
    assert model.SerializeToString() == before
    proto = ir.to_proto(found.model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, found.report


def session(model: onnx.ModelProto, *, optimised: bool) -> ort.InferenceSession:
    """A session with our library."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.register_custom_ops_library(runtime.library())
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(
    model: onnx.ModelProto, feeds: Mapping[str, Array], *, optimised: bool = True
) -> list[Array]:
    """The outputs of a model."""
    result: list[Array] = session(model, optimised=optimised).run(None, dict(feeds))
    return result


def every_value(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors of a model by name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shown = {value.name for value in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in shown:
                copy.graph.output.append(helper.make_empty_tensor_value_info(name))
                shown.add(name)
    names = [value.name for value in copy.graph.output]
    found = dict(zip(names, run(copy, feeds, optimised=False), strict=True))
    held = {item.name: numpy_helper.to_array(item) for item in copy.graph.initializer}
    return {**held, **feeds, **found}


def agree(
    model: onnx.ModelProto, feeds: Mapping[str, Array], costs: QuantCosts = OURS_WIN
) -> Agreement:
    """Lower a file, and hold each of our operators against the QDQ file and the reference.

    Each operator that is given what the QDQ file computes gives what that computes, within a step
    of its scale. Each in a run of the lowered file gives what the reference does, to the bit.
    """
    proto, report = lowered(model, costs)
    plain, ours = every_value(model, feeds), every_value(proto, feeds)
    steps: dict[str, int] = {}
    made: dict[str, Array] = {}
    for node in proto.graph.node:
        if node.domain != runtime.DOMAIN:
            continue
        one = _Node(node, ours)
        one.assert_exact()
        given = [one.given(index, plain, made) for index in range(len(node.input))]
        result = reference(node.op_type, given, one.about)
        made[node.output[0]] = result
        wanted = plain.get(_plain_name(node.output[0]))
        if wanted is not None and wanted.dtype == np.float32:
            tolerance = 1e-5 * max(np.abs(wanted).max(initial=0), 1e-30)
            np.testing.assert_allclose(result.reshape(wanted.shape), wanted, rtol=0, atol=tolerance)
        elif wanted is not None:
            images = _images(wanted)
            wide = one.pixels(result, images.shape[1]).astype(int) - images.astype(int)
            steps[node.output[0]] = int(np.abs(wide).max(initial=0))
    outputs = run(proto, feeds, optimised=False)
    for value, name in zip(outputs, (v.name for v in proto.graph.output), strict=True):
        assert np.array_equal(value, ours[name]), name
    wrong = {name: step for name, step in steps.items() if step > _bound(proto, name)}
    assert not wrong, f"more than a step from the QDQ file: {wrong}"
    return Agreement(proto, report, steps, outputs, run(model, feeds, optimised=False))


def _bound(model: onnx.ModelProto, name: str) -> int:
    """Steps that a tensor may differ by: one.

    Where a sum is inside a convolution, a step of the convolution's own, unseen output is
    ``sum_factor`` steps of the sum's.
    """
    (node,) = (node for node in model.graph.node if name in node.output)
    factors = [float(about.f) for about in node.attribute if about.name == "sum_factor"]
    return max([1, *(math.ceil(factor) for factor in factors)])


def _plain_name(name: str) -> str:
    """The name in the QDQ file of what is in another layout here."""
    for ending in ("_blocked", "_plain", "_flat", "_was"):
        name = name.removesuffix(ending)
    return name


def _images(value: Array) -> Array:
    """Bytes of four dimensions."""
    wide = (value.astype(np.int16) + 128).astype(np.uint8) if value.dtype == np.int8 else value
    return wide if wide.ndim == 4 else wide.reshape(*wide.shape[:2], 1, 1)


_RESIDUAL = {"QuantConv": 6, "QuantDepthwiseConv": 4}
_FLOATS = ("QuantizeImage", "QuantLinear")


class _Node:
    """One of our operators in a run of the lowered file."""

    def __init__(self, node: onnx.NodeProto, values: Mapping[str, Array]) -> None:
        self._node, self._values = node, values
        about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.about = {k: v.decode() if isinstance(v, bytes) else v for k, v in about.items()}

    def _is_blocked(self, index: int) -> bool:
        """Whether an input is in blocks."""
        op = self._node.op_type
        if op in _FLOATS or self.about.get("output_layout") == "blocked":
            return False
        both = op == "QuantChannels" or (index == 1 and op in ("QuantAdd", "QuantScale"))
        return index == 0 or both or index == _RESIDUAL.get(op)

    def given(
        self, index: int, plain: Mapping[str, Array], made: Mapping[str, Array]
    ) -> Array | None:
        """An input, with what the QDQ file computes in it."""
        name = self._node.input[index]
        if not name:
            return None
        value, held = plain.get(_plain_name(name)), self._values[name]
        if value is None:  # between two of our operators, or a constant of ours
            return made.get(name, held)
        if self._is_blocked(index):
            return to_blocked_bytes(_images(value))
        return _images(value) if self._node.op_type == "QuantLayout" else value

    def pixels(self, result: Array, channels: int | None = None) -> Array:
        """An output that is bytes, as images."""
        if self._node.op_type == "QuantLayout" and not self.about.get("output_layout"):
            return _images(result)
        return from_blocked_bytes(result, channels or self._channels())

    def _channels(self) -> int:
        """Of the output."""
        op, inputs = self._node.op_type, self._node.input
        if op == "QuantConv":
            return len(self._values[inputs[3]]) - 1
        if op == "QuantChannels":
            return len(self.about.get("sources", ())) or int(sum(self.about["channels"]))
        return int(self.about["channels"])

    def assert_exact(self) -> None:
        """What was computed is what the reference computes, to the bit."""
        inputs = [self._values[name] if name else None for name in self._node.input]
        exact = reference(self._node.op_type, inputs, self.about)
        result = self._values[self._node.output[0]]
        assert result.shape == exact.shape
        if self._node.op_type in ("QuantAdd", "QuantLookup"):
            return  # number by number: what has no meaning is among them
        if exact.dtype != np.float32:
            result, exact = self.pixels(result), self.pixels(exact)
        if self.about.get("activation") in ("silu", "hard_swish"):
            np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-6)
        else:
            assert np.array_equal(result, exact), self._node.name or self._node.output[0]
