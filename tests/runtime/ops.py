"""One operator as a model: built, run on every instruction set, beside a reference in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from st3fx import native, runtime
from st3fx.runtime import layout
from st3fx.runtime.layout import compress

Array = NDArray[np.float32]

TOLERANCE = 1e-5
"""Largest difference, relative to the largest output."""

ACTIVATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "relu": {"activation": "relu"},
    "relu6": {"activation": "clip"},
    "clip": {"activation": "clip", "minimum": -0.5, "maximum": 0.75},
    "silu": {"activation": "silu"},
    "hard_swish": {"activation": "hard_swish"},
}


@dataclass(frozen=True)
class Node:
    """An operator of the library with its constants.

    Attributes:
        op: Name of the operator.
        attributes: Of the node.
        inputs: Names in order: ``x``, ``z``, … are fed, others are constants, empty ones absent.
        constants: By name.
        types: Of what is fed, and of the output ``y``, where they are not float32.
    """

    op: str
    attributes: dict[str, Any]
    inputs: Sequence[str]
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)

    def model(self) -> bytes:
        """The model, with sizes that are all free."""
        node = helper.make_node(
            self.op, list(self.inputs), ["y"], name="node", domain=runtime.DOMAIN, **self.attributes
        )
        fed = [name for name in self.inputs if name and name not in self.constants]
        graph = helper.make_graph(
            [node],
            "graph",
            [self._value(name) for name in fed],
            [self._value("y")],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(runtime.DOMAIN, runtime.OPSET)]
        model: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=8
        ).SerializeToString()
        return model

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self.types.get(name, TensorProto.FLOAT), None)

    def session(self, isa: str | None = None, threads: int = 1) -> ort.InferenceSession:
        """A session whose kernel uses that instruction set."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(runtime.library())
        with native.using_isa(isa or native.isa()):
            return ort.InferenceSession(self.model(), options, providers=["CPUExecutionProvider"])

    def run(self, isa: str | None = None, threads: int = 1, /, **feeds: NDArray[Any]) -> Any:
        """The output for these inputs."""
        result: NDArray[Any] = self.session(isa, threads).run(None, feeds)[0]
        return result


def sparse_weight(generator: np.random.Generator, shape: tuple[int, ...], density: float) -> Array:
    """Normal weights of which about ``density`` are not zero."""
    weight = generator.standard_normal(shape).astype(np.float32)
    return weight * (generator.random(shape) < density).astype(np.float32)


def weight_inputs(weight: Array) -> dict[str, NDArray[Any]]:
    """The three constants of a sparse weight."""
    sparse = compress(weight)
    return {"values": sparse.values, "columns": sparse.columns, "row_starts": sparse.row_starts}


def sparse_conv(
    weight: Array,
    groups: int = 1,
    bias: Array | None = None,
    residual: bool = False,
    **attributes: Any,
) -> Node:
    """A SparseConv of a dense weight ``[K, C/groups, KH, KW]``."""
    constants = weight_inputs(weight)
    if bias is not None:
        constants["bias"] = bias
    inputs = ["x", "values", "columns", "row_starts"]
    inputs += ["bias" if bias is not None else ""] if bias is not None or residual else []
    inputs += ["z"] if residual else []
    own = {"channels": weight.shape[1] * groups, "kernel_shape": weight.shape[2:], "group": groups}
    return Node("SparseConv", own | attributes, inputs, constants)


def small_conv(**attributes: Any) -> Node:
    """A 3×3 convolution of eight channels to twelve."""
    generator = np.random.default_rng(0)
    weight = sparse_weight(generator, (12, 8, 3, 3), 0.3)
    bias = generator.standard_normal(12).astype(np.float32)
    return sparse_conv(weight, bias=bias, **({"pads": (1, 1, 1, 1)} | attributes))


def place(images: Array, name: str) -> Array:
    """Images in the layout of that name."""
    return layout.to_blocked(images) if name == "blocked" else images


def plain(tensor: Array, name: str, channels: int) -> Array:
    """Images out of the layout of that name."""
    return layout.from_blocked(tensor, channels) if name == "blocked" else tensor


def activated(x: torch.Tensor, name: str) -> torch.Tensor:
    """The activation of ``ACTIVATIONS[name]``."""
    if name == "relu":
        return x.relu()
    if name == "relu6":
        return x.clamp(0, 6)
    if name == "clip":
        return x.clamp(-0.5, 0.75)
    if name == "silu":
        return torch.nn.functional.silu(x)
    return torch.nn.functional.hardswish(x) if name == "hard_swish" else x


def assert_close(
    actual: Array, sums: torch.Tensor, activation: str = "none", tolerance: float = TOLERANCE
) -> None:
    """Activated sums, equal but for rounding: relative to the largest, which a clip may hide."""
    wanted = activated(sums, activation).double().numpy()
    assert actual.shape == wanted.shape
    largest = np.abs(sums.double().numpy()).max(initial=1e-30)
    difference = np.abs(actual.astype(np.float64) - wanted).max(initial=0.0)
    assert difference <= tolerance * largest, f"{difference} of {largest}"
