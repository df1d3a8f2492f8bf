"""Layers of known networks, each as two ONNX Runtime sessions: dense, and with our operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from st3fx import runtime
from st3fx.runtime import layout
from st3fx.runtime.layout import compress

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """A layer of a known network: ``size`` is height and width of its input, 0 for a linear one."""

    model: str
    channels: int
    rows: int
    kernel: int = 1
    size: int = 0
    stride: int = 1
    depthwise: bool = False

    @property
    def name(self) -> str:
        """As ``3×3 256→256 @14 s2``."""
        if not self.size:
            return f"linear {self.channels}→{self.rows}"
        kind = f"{self.kernel}×{self.kernel}{' depthwise' if self.depthwise else ''}"
        return f"{kind} {self.channels}→{self.rows} @{self.size} s{self.stride}"

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


LAYERS = (
    Layer("resnet50", 64, 64, 1, 56), Layer("resnet50", 256, 64, 1, 56),
    Layer("resnet50", 64, 256, 1, 56), Layer("resnet50", 64, 64, 3, 56),
    Layer("resnet50", 128, 128, 3, 56, 2), Layer("resnet50", 512, 128, 1, 28),
    Layer("resnet50", 128, 128, 3, 28), Layer("resnet50", 256, 512, 1, 56, 2),
    Layer("resnet50", 256, 1024, 1, 14), Layer("resnet50", 1024, 256, 1, 14),
    Layer("resnet50", 256, 256, 3, 14), Layer("resnet50", 512, 512, 3, 14, 2),
    Layer("resnet50", 2048, 512, 1, 7), Layer("resnet50", 512, 512, 3, 7),
    Layer("resnet50", 2048, 1000), Layer("vgg16", 64, 64, 3, 224), Layer("vgg16", 128, 128, 3, 112),
    Layer("vgg16", 256, 256, 3, 56), Layer("vgg16", 512, 512, 3, 28),
    Layer("vgg16", 512, 512, 3, 14), Layer("vgg16", 4096, 4096),
    Layer("mobilenet_v2", 32, 32, 3, 112, 1, True), Layer("mobilenet_v2", 96, 96, 3, 112, 2, True),
    Layer("mobilenet_v2", 144, 144, 3, 56, 1, True),
    Layer("mobilenet_v2", 384, 384, 3, 14, 1, True),
    Layer("mobilenet_v2", 960, 960, 3, 7, 1, True), Layer("mobilenet_v2", 96, 24, 1, 56),
    Layer("mobilenet_v2", 64, 384, 1, 14), Layer("mobilenet_v2", 320, 1280, 1, 7),
)  # fmt: skip


def sessions(
    layer: Layer, weight: Array, threads: int, batch: int, libraries: Sequence[str] = ()
) -> list[tuple[ort.InferenceSession, Array]]:
    """The dense layer, then the sparse one of each library (this version's), with their inputs."""
    libraries = libraries or [runtime.library()]
    x = np.random.default_rng(1).standard_normal((batch, layer.channels)).astype(np.float32)
    if not layer.size:
        matrix = weight.reshape(layer.rows, -1)
        sparse = helper.make_node(
            "SparseLinear", ["x", *_names()], ["y"], domain=runtime.DOMAIN, features=layer.channels
        )
        gemm = helper.make_node("Gemm", ["x", "weight"], ["y"], transB=1)
        return [
            (_session(gemm, {"weight": matrix}, threads), _aligned(x)),
            *((_session(sparse, _sparse(matrix), threads, own), _aligned(x)) for own in libraries),
        ]
    images = np.broadcast_to(x[..., None, None], (*x.shape, layer.size, layer.size)).copy()
    window: dict[str, Any] = {
        "kernel_shape": (layer.kernel,) * 2,
        "strides": (layer.stride,) * 2,
        "pads": (layer.kernel // 2,) * 4,
    }
    groups = layer.channels if layer.depthwise else 1
    conv = helper.make_node("Conv", ["x", "weight"], ["y"], group=groups, **window)
    layouts: dict[str, Any] = {
        "channels": layer.channels,
        "input_layout": "blocked",
        "output_layout": "blocked",
    }
    op, inputs = ("DepthwiseConv", ["weight"]) if layer.depthwise else ("SparseConv", _names())
    node = helper.make_node(op, ["x", *inputs], ["y"], domain=runtime.DOMAIN, **window, **layouts)
    constants = {"weight": weight} if layer.depthwise else _sparse(weight)
    blocked = layout.to_blocked(images)
    return [
        (_session(conv, {"weight": weight}, threads), _aligned(images)),
        *((_session(node, constants, threads, own), _aligned(blocked)) for own in libraries),
    ]


def _names() -> list[str]:
    return ["values", "columns", "row_starts"]


def _sparse(weight: Array) -> dict[str, NDArray[Any]]:
    sparse = compress(weight)
    return dict(zip(_names(), (sparse.values, sparse.columns, sparse.row_starts), strict=True))


def _session(
    node: Any, constants: dict[str, NDArray[Any]], threads: int, library: str | None = None
) -> ort.InferenceSession:
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(runtime.DOMAIN, runtime.OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # An idle pool of threads that keeps spinning taxes whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _aligned(array: Array) -> Array:
    """A copy at a multiple of 64 bytes, as ONNX Runtime's own tensors are."""
    memory = np.empty(array.nbytes + 64, dtype=np.uint8)
    begin = -memory.ctypes.data % 64
    copy = memory[begin : begin + array.nbytes].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy
