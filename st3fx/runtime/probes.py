"""The layers that a calibration measures, each as a model of one node."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from st3fx.runtime.costs import ConvWork, LinearWork, Work
from st3fx.runtime.inference import DOMAIN, OPSET, library
from st3fx.runtime.layout import storage_channels
from st3fx.runtime.weights import compress

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

CONVOLUTIONS = (
    # input channels, output channels, size of the output, kernel, stride
    (64, 64, 56, 1, 1), (256, 64, 56, 1, 1), (64, 256, 56, 1, 1), (128, 512, 28, 1, 1),
    (1024, 256, 14, 1, 1), (256, 1024, 14, 1, 1), (2048, 512, 7, 1, 1), (512, 2048, 7, 1, 1),
    (16, 96, 112, 1, 1), (144, 24, 56, 1, 1), (384, 64, 14, 1, 1), (16, 16, 32, 1, 1),
    (64, 64, 56, 3, 1), (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1),
    (16, 16, 32, 3, 1), (64, 64, 8, 3, 1), (128, 128, 28, 3, 2), (512, 512, 7, 3, 2),
    (256, 512, 28, 1, 2), (1024, 2048, 7, 1, 2), (3, 64, 112, 7, 2),
)  # fmt: skip
LINEAR = ((2048, 1000, 1), (4096, 4096, 1), (256, 256, 1), (768, 3072, 197), (3072, 768, 197),
          (96, 384, 784))  # fmt: skip
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02)
IMAGES = ((64, 56), (256, 28), (512, 7))


@dataclass(frozen=True)
class Probe:
    """A layer to measure.

    Attributes:
        kind: Layers of a kind have the same constants.
        call: Runs it once.
        work: What it computes; ``None`` for a change of layout.
        is_sparse: By which kernel.
        blocked: Whether its images are in the blocked layout.
        nbytes: Of an image that changes its layout.
    """

    kind: str
    call: Callable[[], object]
    work: Work | None = None
    is_sparse: bool = False
    blocked: bool = False
    nbytes: int = 0


def probes() -> Iterator[Probe]:
    """All layers that a calibration measures.

    Raises:
        NativeError: The kernel library is missing.
    """
    generator = np.random.default_rng(0)
    for conv, density, blocked in itertools.product(CONVOLUTIONS, DENSITIES, (True, False)):
        if blocked or (conv[3] == 1 and density in (0.2, 0.05)):
            yield _sparse_conv(conv, density, generator, blocked=blocked)
    yield from (_dense_conv(conv, generator) for conv in CONVOLUTIONS)
    yield from (_layout(channels, size) for channels, size in IMAGES)
    for linear, density in itertools.product(LINEAR, DENSITIES):
        yield _sparse_linear(linear, density, generator)
    yield from (_dense_linear(linear, generator) for linear in LINEAR)


def _work(shape: Shape, nonzeros: int) -> ConvWork:
    channels, rows, size, kernel, stride = shape
    return ConvWork(
        rows=rows, columns=channels * kernel * kernel, nonzeros=nonzeros, taps=kernel * kernel,
        stride=stride, groups=1, in_positions=(size * stride) ** 2, out_positions=size * size,
    )  # fmt: skip


def _window(shape: Shape) -> dict[str, Any]:
    kernel, stride = shape[3:]
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}


def _sparse(rows: int, columns: int, density: float, generator: np.random.Generator) -> Array:
    weight = generator.standard_normal((rows, columns), dtype=np.float32)
    return weight * (generator.random((rows, columns)) < density)


def _sparse_conv(
    shape: Shape, density: float, generator: np.random.Generator, *, blocked: bool
) -> Probe:
    channels, rows, size, kernel, stride = shape
    weight = _sparse(rows, channels * kernel * kernel, density, generator)
    layout = "blocked" if blocked else "nchw"
    given = storage_channels(channels, size * stride, size * stride) if blocked else channels
    node = helper.make_node(
        "SparseConv", ["x", "values", "columns", "row_starts", "bias"], ["y"], domain=DOMAIN,
        channels=channels, input_layout=layout, output_layout=layout, activation="relu",
        **_window(shape),
    )  # fmt: skip
    constants = _packed(weight) | {"bias": np.zeros(rows, np.float32)}
    call = _caller(node, (1, given, size * stride, size * stride), constants)
    work = _work(shape, int(np.count_nonzero(weight)))
    return Probe("SparseConv", call, work, is_sparse=True, blocked=blocked)


def _dense_conv(shape: Shape, generator: np.random.Generator) -> Probe:
    channels, rows, size, kernel, stride = shape
    weight = _sparse(rows, channels * kernel * kernel, 1, generator)
    constants = {
        "w": weight.reshape(rows, channels, kernel, kernel),
        "b": np.zeros(rows, np.float32),
    }
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **_window(shape))
    call = _caller(node, (1, channels, size * stride, size * stride), constants)
    return Probe("Conv", call, _work(shape, weight.size))


def _layout(channels: int, size: int) -> Probe:
    node = helper.make_node(
        "Layout", ["x"], ["y"], domain=DOMAIN, channels=channels, input_layout="nchw",
        output_layout="blocked",
    )  # fmt: skip
    call = _caller(node, (1, channels, size, size), {})
    return Probe("Layout", call, nbytes=4 * channels * size * size)


def _sparse_linear(shape: Shape, density: float, generator: np.random.Generator) -> Probe:
    features, rows, vectors = shape
    weight = _sparse(rows, features, density, generator)
    node = helper.make_node(
        "SparseLinear", ["x", "values", "columns", "row_starts"], ["y"], domain=DOMAIN,
        features=features,
    )  # fmt: skip
    work = LinearWork(rows, features, int(np.count_nonzero(weight)), vectors)
    return Probe(
        "SparseLinear", _caller(node, (vectors, features), _packed(weight)), work, is_sparse=True
    )


def _dense_linear(shape: Shape, generator: np.random.Generator) -> Probe:
    features, rows, vectors = shape
    weight = _sparse(rows, features, 1, generator)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    call = _caller(node, (vectors, features), {"w": weight})
    return Probe("Gemm", call, LinearWork(rows, features, weight.size, vectors))


def _packed(weight: Array) -> dict[str, Array]:
    packed = compress(weight)
    return {name: getattr(packed, name) for name in ("values", "columns", "row_starts")}


def _caller(
    node: onnx.NodeProto, shape: Shape, constants: dict[str, Array]
) -> Callable[[], object]:
    """A session of that node alone, with a random input bound to it."""
    import onnxruntime  # noqa: PLC0415

    rank = len(shape)
    graph = helper.make_graph(
        [node], "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.register_custom_ops_library(library())
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    return lambda: session.run(None, {"x": x})
