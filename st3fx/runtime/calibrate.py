"""Measures the constants of the cost model: layers by both kernels, then least squares.

Each layer is a model of one node in a session with one thread. All are called in rounds, and the
fastest call counts: what else the machine does only ever adds time. The constants are those with
the smallest sum of squared relative errors that are not negative.

The layers that a calibration measures, each as a model of one node.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from st3fx.runtime.costs import ConvWork, Costs, LinearWork, Work, dense_features, sparse_features
from st3fx.runtime.inference import DOMAIN, OPSET, library
from st3fx.runtime.layout import compress, storage_channels

AnyArray = npt.NDArray[Any]
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


def _sparse(rows: int, columns: int, density: float, generator: np.random.Generator) -> AnyArray:
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


def _packed(weight: AnyArray) -> dict[str, AnyArray]:
    packed = compress(weight)
    return {name: getattr(packed, name) for name in ("values", "columns", "row_starts")}


def _caller(
    node: onnx.NodeProto, shape: Shape, constants: dict[str, AnyArray]
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


Array = npt.NDArray[np.float64]

ROUNDS = 5

_SECONDS = 0.004
"""Of calls of one layer in one round, and at least two."""


@dataclass(frozen=True)
class Fit:
    """Measured constants.

    Attributes:
        costs: The constants.
        error: Median over the layers of how far the model is from what was measured, as a share.
        layers: How many times were measured.
    """

    costs: Costs
    error: float
    layers: int


def calibrate(progress: Callable[[str], None]) -> Fit:
    """Measure the constants on this machine; takes about a minute.

    Args:
        progress: Called with what is under way.

    Raises:
        NativeError: The kernel library is missing.
    """
    measured = list(probes())
    best = np.full(len(measured), np.inf)
    for number in range(ROUNDS):
        progress(f"measuring {len(measured)} layers, round {number + 1} of {ROUNDS}")
        for index, probe in enumerate(measured):
            best[index] = min(best[index], _fastest(probe.call))
    return fit([(probe, float(best[index])) for index, probe in enumerate(measured)])


def fit(measured: Sequence[tuple[Probe, float]]) -> Fit:
    """The constants that explain measured seconds best.

    Args:
        measured: Layers, each with the seconds of a call.
    """
    found: dict[str, float] = {}
    errors: list[float] = []
    # Each kernel has its own constants; `call`, which several have, is that of the first.
    for kind in dict.fromkeys(probe.kind for probe, _ in measured):
        chosen = [(_features(probe), t) for probe, t in measured if probe.kind == kind]
        solved, error = _solve(chosen, found)
        found |= solved
        errors += error
    costs = dataclasses.replace(Costs(), **found)
    return Fit(costs, float(np.median(errors)), len(measured))


def _features(probe: Probe) -> Mapping[str, float]:
    if probe.work is None:
        return {"call": 1.0, "move": probe.nbytes}
    if probe.is_sparse:
        return sparse_features(probe.work, blocked=probe.blocked)
    return dense_features(probe.work)


def _solve(
    measured: Sequence[tuple[Mapping[str, float], float]], known: Mapping[str, float]
) -> tuple[dict[str, float], list[float]]:
    """Constants that are not known yet, and the relative error of each time."""
    names = sorted({name for features, _ in measured for name in features} - set(known))
    times = np.array([t for _, t in measured])
    rest = times - [sum(known.get(n, 0.0) * x for n, x in f.items()) for f, _ in measured]
    matrix = np.array([[features.get(name, 0.0) for name in names] for features, _ in measured])
    solution = nonnegative(matrix / times[:, None], rest / times)
    errors = np.abs(matrix @ solution - rest) / times
    return dict(zip(names, map(float, solution), strict=True)), errors.tolist()


def nonnegative(matrix: Array, target: Array) -> Array:
    """Least squares with no negative unknown: the most negative one becomes zero until none is."""
    left = list(range(matrix.shape[1]))
    while left:
        # Columns of one scale: they differ by many powers of ten.
        scale = np.abs(matrix[:, left]).max(axis=0) + 1e-300
        part = np.linalg.lstsq(matrix[:, left] / scale, target, rcond=None)[0] / scale
        if (part >= 0).all():
            solution = np.zeros(matrix.shape[1])
            solution[left] = part
            return solution
        left.pop(int(np.argmin(part * scale)))
    return np.zeros(matrix.shape[1])


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    call()
    began, best, count = time.perf_counter(), np.inf, 0
    while count < 2 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        call()
        best, count = min(best, time.perf_counter() - start), count + 1
    return float(best)
